"""Figures by hand, and what the theory promises of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import F64, normal, symmetric
from dense_indicators import CURVATURE, EIGENVALUES, HERE
from noisescape.theory import decay_exponent, indicator_bounds, projection_coefficient
from noisescape.theory.landscapes import quadratic


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_noise_scales_are_in_samples_and_do_not_depend_on_the_batch(batch_size: int, replacement: bool) -> None:
    """Gradients (1 ± 2, 3 ± 1): ‖ḡ‖² = 10, TrC = 5; H = diag(4, 2), Tr(HC) = 18, ḡᵀHḡ = 22."""
    hessian = torch.diag(torch.tensor([4.0, 2.0], dtype=F64))
    linear = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0], [2.0, 1.0], [-2.0, -1.0]])
    theta = torch.tensor([0.25, 1.5], dtype=F64)
    found = ns.measure(quadratic(hessian, linear.to(F64)), theta, batch_size=batch_size, replacement=replacement)
    share = 1 / batch_size if replacement else (6 - batch_size) / (5 * batch_size)
    assert found.noise_scale.value == pytest.approx(5 / 10, rel=1e-12)
    assert found.curvature_noise_scale.value == pytest.approx(18 / 22, rel=1e-12)
    assert found.trace_sigma.value == pytest.approx(5 * share, rel=1e-12)
    assert found.trace_h_sigma.value == pytest.approx(18 * share, rel=1e-12)
    assert found.anisotropy.value == pytest.approx(18 / (6 * 5 / 2), rel=1e-12)


def test_decay_exponent_is_read_after_k_eigenvalues() -> None:
    values = torch.tensor([100.0, 50.0, 1.0, 0.1], dtype=F64)
    risk = quadratic(torch.diag(values), normal(5, 4, seed=1))
    for k, after in ((1, 50.0), (2, 1.0), (3, 0.1), (20, 0.1)):
        found = ns.measure(risk, torch.ones(4, dtype=F64), batch_size=1, k=k).decay_exponent.value
        assert found == pytest.approx(math.log(100 / after) / math.log(4), rel=1e-12)
    assert decay_exponent(100.0, 1.0, 10_000) == pytest.approx(0.5)
    assert decay_exponent(1.0, 0.0, 5) == math.inf
    assert decay_exponent(1.0, -1.0, 5) == math.inf


@pytest.mark.parametrize(("top", "after"), [(-1.0, -2.0), (0.0, -1.0), (0.0, 0.0), (math.nan, 1.0)])
def test_without_a_positive_eigenvalue_there_is_no_decay(top: float, after: float) -> None:
    assert math.isnan(decay_exponent(top, after, 100))
    if math.isfinite(top):
        risk = quadratic(torch.diag(torch.tensor([top, after, after], dtype=F64)), normal(5, 3, seed=1))
        assert math.isnan(ns.measure(risk, torch.ones(3, dtype=F64), batch_size=1, k=1).decay_exponent.value)


def with_covariance(covariance: Tensor) -> ns.EmpiricalRisk:
    """L = ½θᵀ·CURVATURE·θ and C given exactly: linear terms ±√D times the columns of a root."""
    values, vectors = torch.linalg.eigh(covariance)
    columns = (vectors * values.clamp_min(0).sqrt()).T * math.sqrt(len(covariance))
    return quadratic(CURVATURE, torch.cat([columns, -columns]))


@pytest.mark.parametrize("seed", range(10))
def test_both_bounds_hold_for_positive_curvature(seed: int) -> None:
    linear = normal(9, 6, seed=seed) * torch.logspace(0, -2, 6)[torch.randperm(6)]
    found = ns.measure(quadratic(CURVATURE, linear), HERE, batch_size=2)
    assert found.lower_bound.value <= found.anisotropy.value * (1 + 1e-12)
    assert found.anisotropy.value <= found.upper_bound.value * (1 + 1e-12)
    assert found.upper_bound.value == pytest.approx(6 * 5 / 8.35, rel=1e-12)


def test_rank_one_noise_along_the_first_eigenvector_attains_both_bounds() -> None:
    first = torch.linalg.eigh(CURVATURE).eigenvectors[:, -1]
    found = ns.measure(with_covariance(torch.outer(first, first)), HERE, batch_size=2)
    assert found.anisotropy.value == pytest.approx(found.upper_bound.value, rel=1e-9)
    assert found.lower_bound.value == pytest.approx(found.upper_bound.value, rel=1e-9)
    assert found.projection_coefficient.value == pytest.approx(8.35 / 5, rel=1e-9)


def test_isotropic_noise_is_its_own_reference() -> None:
    found = ns.measure(with_covariance(3 * torch.eye(6, dtype=F64)), HERE, batch_size=2)
    assert found.anisotropy.value == pytest.approx(1, rel=1e-12)
    assert found.trace_h_sigma.value == pytest.approx(1.5 * 8.35, rel=1e-12)
    assert found.alignment.value == pytest.approx(8.35 / float(EIGENVALUES.norm()) / math.sqrt(6), rel=1e-12)
    assert found.projection_coefficient.value == pytest.approx(8.35 / 5 / 6, rel=1e-12)


def test_noise_proportional_to_curvature_is_fully_aligned() -> None:
    found = ns.measure(with_covariance(0.7 * CURVATURE), HERE, batch_size=4)
    assert found.alignment.value == pytest.approx(1, rel=1e-9)
    assert found.projection_coefficient.value == pytest.approx(1, rel=1e-9)
    assert found.lower_bound.value == pytest.approx(25 * 6 / 8.35**2, rel=1e-9)
    assert found.anisotropy.value == pytest.approx(float(EIGENVALUES @ EIGENVALUES) * 6 / 8.35**2, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_for_any_positive_matrices(seed: int) -> None:
    curvature, noise = (symmetric(5, normal(5, seed=seed + shift).exp(), seed=seed + shift) for shift in (0, 99))
    values, vectors = torch.linalg.eigh(curvature)
    top, along = float(values[-1]), float(vectors[:, -1] @ noise @ vectors[:, -1])
    total, spread = float(curvature.trace()), float(noise.trace())
    lower, upper = indicator_bounds(projection_coefficient(along, top, total, spread), top, total, 5)
    share = 5 * float((curvature * noise).sum()) / (total * spread)
    assert lower <= share <= upper
    # a·λ₁²·D/(TrH)² = D·λ₁·u₁ᵀΣu₁/(TrH·TrΣ): what the top direction alone contributes
    assert lower == pytest.approx(5 * top * along / (total * spread), rel=1e-12)
