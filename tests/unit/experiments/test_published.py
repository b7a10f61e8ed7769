"""The published code's deviations, each held to what it does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import CASES, F64, generator, normal
from noisescape.dynamics import SGD, GLDHessian, GLDLeading, NoiseState
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.protocols.comparison import make_dynamics
from noisescape.experiments.published import PublishedHessian, PublishedLeading, published_dynamics
from noisescape.experiments.svhn import SVHN
from noisescape.risk import EmpiricalRisk

MLP = CASES["mlp cross-entropy"]


def saddle(*curvatures: float) -> EmpiricalRisk:
    """Losses ½Σλ(θ − p)², so H = diag λ everywhere; Σ is that of λp."""
    values = torch.tensor(curvatures, dtype=F64)
    points = normal(40, len(curvatures), seed=6)
    return EmpiricalRisk.from_losses(lambda w: (values * (w - points) ** 2).sum(1) / 2, torch.zeros_like(values))


def batch_trace(risk: EmpiricalRisk, theta: Tensor, batch_size: int) -> float:
    return float(risk.noise_covariance(theta, batch_size).dense().trace())


def test_published_hessian_noise_matches_where_curvature_is_positive() -> None:
    risk = saddle(9.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1)
    theta = normal(8, seed=7)
    found = PublishedHessian(4, k=3, refresh=1).covariance(risk, theta).dense()
    expected = torch.diag(torch.tensor([9.0, 5.0, 3.0, 0, 0, 0, 0, 0], dtype=F64)) / 17
    assert_close(found, expected * batch_trace(risk, theta, 4), rtol=1e-4, atol=1e-4)
    assert_close(found, GLDHessian(4, k=3, refresh=1).covariance(risk, theta).dense(), rtol=1e-4, atol=1e-4)


def test_published_hessian_noise_is_off_on_a_saddle() -> None:
    """|9| + |−6| + |4| = 19 is injected where 9 − 6 + 4 = 7 was meant to scale it to Tr Σ_B."""
    risk = saddle(9.0, -6.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.1)
    theta = normal(8, seed=7)
    target = batch_trace(risk, theta, 4)
    published = PublishedHessian(4, k=3, refresh=1).covariance(risk, theta).dense()
    expected = torch.diag(torch.tensor([9.0, 6.0, 4.0, 0, 0, 0, 0, 0], dtype=F64)) * target / 7
    assert_close(published, expected, rtol=1e-4, atol=1e-4)
    assert float(published.trace()) == pytest.approx(19 / 7 * target, rel=1e-4)
    corrected = GLDHessian(4, k=3, refresh=1).covariance(risk, theta).dense()
    assert float(corrected.trace()) == pytest.approx(target, rel=1e-4)
    assert float(corrected[1, 1]) == pytest.approx(0, abs=1e-6), "noise along no negative curvature"


def test_published_leading_noise_comes_on_refresh_steps_only() -> None:
    risk, theta = MLP.risk(), MLP.theta
    dynamics = PublishedLeading(4, k=2, refresh=3)
    gradient = risk.gradient(theta)
    state, random, seen = NoiseState(), generator(1), []
    for _ in range(8):
        noisy, state = dynamics.noisy_gradient(risk, theta, state, random)
        seen.append(not torch.equal(noisy, gradient))
    assert seen == [True, False, False, True, False, False, True, False]
    assert state.step == 8
    usual, state = GLDLeading(4, k=2, refresh=3), NoiseState()
    for _ in range(4):
        noisy, state = usual.noisy_gradient(risk, theta, state, random)
        assert not torch.equal(noisy, gradient)


def test_published_leading_noise_is_not_rescaled() -> None:
    risk, theta = MLP.risk(), MLP.theta
    constants = {"batch_size": 4, "k": 2, "refresh": 5, "rescale": True}
    dynamics = published_dynamics("gld-leading", **constants)
    values = torch.linalg.eigvalsh(risk.noise_covariance(theta, 4).dense())
    assert float(dynamics.covariance(risk, theta).trace()) == pytest.approx(float(values[-2:].sum()))


CONSTANTS: dict[str, Any] = {
    "batch_size": 4,
    "k": 2,
    "rho": 0.1,
    "refresh": 5,
    "rescale": True,
    "strength": 0.01,
    "batches": None,
}


def test_published_sgd_draws_without_replacement() -> None:
    risk, theta = MLP.risk(), MLP.theta
    assert published_dynamics("sgd", **CONSTANTS) == SGD(4, replacement=False)
    whole = published_dynamics("sgd", **{**CONSTANTS, "batch_size": risk.sample_count})
    noisy, _ = whole.noisy_gradient(risk, theta, NoiseState(), generator())
    assert_close(noisy, risk.gradient(theta))
    count = risk.sample_count
    share = (count - 4) / (count - 1)
    found = published_dynamics("sgd", **CONSTANTS).covariance(risk, theta).dense()
    assert_close(found, share * SGD(4).covariance(risk, theta).dense())


def test_what_the_published_code_computes_on_every_step() -> None:
    """By name, as it is made; the others keep ten steps."""
    published, paper = FASHION_MNIST.configure("as-published"), FASHION_MNIST.configure("paper")
    every_step = {"gld-dynamic", "gld-diagonal", "gld-top-eigenvector"}
    refreshed = {*every_step, "gld-leading", "gld-hessian"}
    for name in refreshed:
        assert make_dynamics(published, name, 1.0).refresh == (1 if name in every_step else 10)
        assert make_dynamics(paper, name, 1.0).refresh == 10
    both = replace(paper, refresh=7, curvature_refresh=5, every_step=("gld-hessian",))
    found = {name: make_dynamics(both, name, 1.0).refresh for name in refreshed}
    assert found == {**dict.fromkeys(refreshed, 7), "gld-hessian": 1, "gld-top-eigenvector": 5}


def test_published_vgg_noise_is_that_of_independent_batches_without_replacement() -> None:
    """Diagonal and dynamic noise from batches that hold no sample twice: at B = N there is no noise."""
    risk, theta = MLP.risk(), MLP.theta
    count = risk.sample_count
    config = SVHN.configure("as-published", batch_size=count, batches=4, refresh=1)
    scale = float(SGD(count).variances(risk, theta)[0].sum())
    for name in ("gld-diagonal", "gld-dynamic"):
        of_subsets, _ = make_dynamics(config, name, 1.0).noise(risk, theta, None, generator())
        assert float(of_subsets.trace()) == pytest.approx(0, abs=1e-20 * scale + 1e-28)
        paper = replace(config, preset="paper", replacement=True)
        with_replacement, _ = make_dynamics(paper, name, 1.0).noise(risk, theta, None, generator())
        assert float(with_replacement.trace()) > 0.01 * scale
    assert make_dynamics(config, "sgd", 1.0) == SGD(count, replacement=False)


def test_a_partition_has_the_covariance_of_batches_with_replacement_up_to_one_in_n() -> None:
    """The N/B batch means of a random partition, by enumeration: why FashionMNIST as published takes C/B."""
    rows = normal(6, 3, seed=3)
    centred = rows - rows.mean(0)
    found = [
        torch.cov(torch.stack([rows[list(batch)].mean(0) for batch in partition]).T)
        for partition in partitions([*range(6)], 2)
    ]
    assert len(found) == 15
    assert_close(torch.stack(found).mean(0), 6 / 5 * centred.T @ centred / 6 / 2)


def partitions(items: list[int], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Every way to part the items into batches of a size."""
    if not items:
        yield []
    for others in itertools.combinations(items[1:], size - 1):
        batch = (items[0], *others) if items else ()
        for rest in partitions([item for item in items if item not in batch], size):
            yield [batch, *rest]


def test_only_three_dynamics_of_the_published_code_deviate() -> None:
    config = FASHION_MNIST.configure("paper", rho=0.1)
    published = replace(config, preset="as-published")
    differing = {
        name for name in config.dynamics if make_dynamics(config, name, 1.0) != make_dynamics(published, name, 1.0)
    }
    assert differing == {"sgd", "gld-leading", "gld-hessian"}
