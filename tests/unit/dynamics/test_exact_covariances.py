"""Claimed covariances are exact, whatever a trajectory estimates, sketches or follows."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from dynamics_cases import (
    BATCH,
    SPECTRA,
    assert_same_matrix,
    best_part,
    covariance_of,
    gradients_of,
    with_gradients,
)
from noisescape.experiments.published import PublishedHessian
from noisescape.risk.gradients import fits_gradients
from noisescape.theory.landscapes import quadratic
from slowness import quick

DECAYS = [pytest.param(decay, id=name) for name, decay in SPECTRA.items()]


@pytest.mark.parametrize("rescale", quick([True], [False]))
@pytest.mark.parametrize("decay", quick(DECAYS[-1:], DECAYS))
@pytest.mark.parametrize(
    ("count", "dimension", "dtype", "rtol", "budget"),
    [
        (300, 400, torch.float64, 1e-9, None),
        (400, 300, torch.float64, 1e-9, None),
        (300, 400, torch.float32, 1e-4, None),
        (300, 400, torch.float64, 1e-9, 100_000),
        (4500, 150, torch.float64, 1e-9, None),
    ],
    ids=["wide", "tall", "float32", "gradients not held", "more samples than a Gram matrix takes"],
)
def test_leading_covariance_is_the_best_part_of_its_rank(count, dimension, dtype, rtol, budget, decay, rescale):
    gradients = gradients_of(count, dimension, decay, dtype)
    risk = with_gradients(gradients, memory_budget=budget)
    theta = risk.parameters()
    assert fits_gradients(risk, theta) == (budget is None)
    dynamics = ns.GLDLeading(BATCH, k=12, rescale=rescale)
    sigma = covariance_of(gradients)
    wanted = best_part(sigma, 12)
    wanted = wanted * (sigma.trace() / wanted.trace() if rescale else 1.0)
    assert_same_matrix(dynamics.covariance(risk, theta).dense(), wanted, rtol)
    assert_same_matrix(
        ns.MatchedTrace(dynamics, 2.0).covariance(risk, theta).dense(), wanted * 2 / wanted.trace(), rtol
    )


def test_leading_covariance_of_replicas_is_the_best_part_at_each():
    gradients = gradients_of(40, 30, 0.0)
    rotations = torch.linalg.qr(torch.randn(3, 30, 30, generator=torch.Generator().manual_seed(1)).double()).Q
    risk = with_gradients(torch.stack([gradients @ rotation for rotation in rotations]))
    for rescale in (False, True):
        dynamics = ns.GLDLeading(BATCH, k=4, rescale=rescale)
        found = dynamics.covariance(risk, torch.zeros(3, 30, dtype=torch.float64))
        for row, rotation in enumerate(rotations):
            sigma = covariance_of(gradients @ rotation)
            wanted = best_part(sigma, 4)
            wanted = wanted * (sigma.trace() / wanted.trace() if rescale else 1.0)
            assert_same_matrix(found.replica(row).dense(), wanted, 1e-9)


def test_leading_covariance_of_a_lower_rank_is_all_of_it():
    gradients = gradients_of(7, 300, 0.0)
    risk = with_gradients(gradients)
    found = ns.GLDLeading(BATCH, k=20).covariance(risk, risk.parameters()).dense()
    assert_same_matrix(found, covariance_of(gradients), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("name", ["gld-hessian", "gld-top-eigenvector", "published"])
def test_hessian_covariance_is_exact_in_spectra_that_do_not_decay(name, decay, dtype):
    """D beyond what is solved densely; eigenvalues of both signs, those close together included."""
    gradients = gradients_of(60, 300, 0.0, dtype)
    rows = gradients_of(450, 300, decay / 2)
    hessian = rows.T @ rows / 450
    hessian = hessian - 0.3 * hessian.diagonal().mean() * torch.eye(300, dtype=torch.float64)
    risk = with_gradients(gradients, hessian.to(dtype))
    sigma, k = covariance_of(gradients), 1 if name == "gld-top-eigenvector" else 8
    values, vectors = torch.linalg.eigh(hessian)
    if name == "published":
        chosen = values.abs().argsort()[-k:]
        vectors, values = vectors[:, chosen], values[chosen]
        wanted = vectors * values.abs() @ vectors.T * sigma.trace() / values.sum().abs()
        dynamics = PublishedHessian(BATCH, k=k)
    else:
        wanted = best_part(hessian, k)
        wanted = wanted * sigma.trace() / wanted.trace()
        dynamics = ns.GLDTopEigenvector(BATCH) if k == 1 else ns.GLDHessian(BATCH, k=k)
    rtol = 1e-8 if dtype == torch.float64 else 2e-3
    assert_same_matrix(dynamics.covariance(risk, risk.parameters()).dense(), wanted, rtol)
    matched = ns.MatchedTrace(dynamics, 2.0)
    assert_same_matrix(
        matched.covariance(risk, risk.parameters()).dense(), wanted * 2 / wanted.trace(), max(rtol, 1e-6)
    )


def test_hessian_noise_ignores_negative_curvature():
    """A saddle: only the positive direction may carry noise, all of the trace."""
    hessian = torch.diag(torch.tensor([2.0, -5.0], dtype=torch.float64))
    gradients = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    risk = quadratic(hessian, gradients)
    covariance = ns.GLDHessian(1, k=2).covariance(risk, torch.zeros(2, dtype=torch.float64))
    wanted = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(covariance.dense(), wanted)


@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(
    "dynamics",
    [
        ns.SGD(BATCH),
        ns.SGD(BATCH, replacement=False),
        ns.GLDFull(BATCH),
        ns.GLDDiagonal(BATCH, batches=3, refresh=7),
        ns.GLDDynamic(BATCH, batches=3, refresh=7),
        ns.GLDShuffled(BATCH, shuffle_seed=2),
    ],
    ids=repr,
)
def test_other_covariances_are_exact_whatever_a_trajectory_estimates(dynamics, decay):
    gradients = gradients_of(200, 150, decay)
    risk = with_gradients(gradients)
    sigma = covariance_of(gradients) * (1 if dynamics.replacement else (200 - BATCH) / 199)
    if isinstance(dynamics, ns.GLDShuffled):
        order = torch.randperm(150, generator=torch.Generator().manual_seed(2))
        sigma = sigma[order][:, order]
    elif isinstance(dynamics, ns.GLDDynamic):
        sigma = torch.eye(150, dtype=sigma.dtype) * sigma.trace() / 150
    elif isinstance(dynamics, ns.GLDDiagonal):
        sigma = torch.diag(sigma.diagonal())
    assert_same_matrix(dynamics.covariance(risk, risk.parameters()).dense(), sigma, 1e-10)
