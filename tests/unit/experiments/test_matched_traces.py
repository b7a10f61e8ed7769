"""Every noise of the comparison injects the trace that it should."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from cases import generator
from noisescape.dynamics import NoiseState
from noisescape.experiments.digits import DigitsConfig, digits_problem
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.protocols.comparison import make_dynamics
from noisescape.experiments.svhn import SVHN
from noisescape.risk import EmpiricalRisk
from run_files import SMALL
from slowness import quick

MATCHED = DigitsConfig(clean=50, corrupted=10, refresh=10**6, curvature_refresh=10**6)


@pytest.fixture(scope="module")
def digits() -> tuple[EmpiricalRisk, Tensor, float]:
    """The digits network at its start, and TrΣ_B there."""
    risk = digits_problem(MATCHED, 0).risk
    theta = risk.parameters()
    rows = risk.per_sample_gradients(theta).double()
    return risk, theta, float(rows.var(0, correction=0).sum()) / MATCHED.batch_size


def injected(dynamics: Any, risk: EmpiricalRisk, theta: Tensor, draws: int, *, kept: bool = True) -> np.ndarray:
    """‖ε‖² of that many draws at one θ, all from one root if it may be kept."""
    random, gradient, state = generator(5), risk.gradient(theta), NoiseState()
    found = []
    for _ in range(draws):
        noisy, after = dynamics.noisy_gradient(risk, theta, state, random)
        state = after if kept else state
        found.append(float((noisy - gradient).double().square().sum()))
    return np.array(found)


def assert_mean(values: np.ndarray, expected: float) -> None:
    """Within 4.5 of its own standard errors, which a factor of 1.25 would leave."""
    stderr = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 4.5 * stderr
    assert 4.5 * stderr < 0.25 * expected, "too few draws to tell"


DRAWS = {
    "sgd": 500,
    "gld-constant": 100,
    "gld-dynamic": 100,
    "gld-diagonal": 100,
    "gld-leading": 300,
    "gld-hessian": 500,
    "gld-top-eigenvector": 1200,
    "gld-full": 300,
    "gld-shuffled": 300,
}
"""Noise of few directions varies more: in one direction by √2 of its mean."""


@pytest.mark.parametrize("name", quick(["sgd", "gld-constant", "gld-diagonal"], DRAWS))
def test_every_noise_injects_the_trace_of_minibatches(
    name: str, digits: tuple[EmpiricalRisk, Tensor, float]
) -> None:
    risk, theta, target = digits
    dynamics = make_dynamics(MATCHED, name, target)
    dynamics.check(risk)
    assert_mean(injected(dynamics, risk, theta, DRAWS[name]), target)


def test_all_the_noises_of_the_comparison_are_matched() -> None:
    assert DRAWS.keys() | {"gd", "gd-gradient-penalty"} == set(FASHION_MNIST.configure("paper").dynamics)


def test_leading_noise_that_is_not_rescaled_lacks_the_rest(digits: tuple[EmpiricalRisk, Tensor, float]) -> None:
    risk, theta, target = digits
    dynamics = make_dynamics(replace(MATCHED, rescale=False, k=5), "gld-leading", target)
    share = float(risk.noise_covariance(theta, MATCHED.batch_size).leading(5)[0].sum()) / target
    assert 0.1 < share < 0.95
    assert_mean(injected(dynamics, risk, theta, 400), share * target)


@pytest.mark.parametrize("name", ["gd", "gd-gradient-penalty"])
def test_what_has_no_noise_repeats_itself(name: str, digits: tuple[EmpiricalRisk, Tensor, float]) -> None:
    risk, theta, target = digits
    values = injected(make_dynamics(MATCHED, name, target), risk, theta, 3)
    assert values.tolist() == [values[0]] * 3
    assert (values[0] == 0) == (name == "gd")


@pytest.mark.parametrize("name", quick(["gld-dynamic"], ["gld-diagonal"]))
def test_noise_estimated_from_minibatches_is_as_large_on_average(
    name: str, digits: tuple[EmpiricalRisk, Tensor, float]
) -> None:
    """As the training experiments have it; a new estimate for every draw."""
    risk, theta, target = digits
    config = SVHN.configure("quick", refresh=1, batches=4, batch_size=MATCHED.batch_size)
    assert_mean(injected(make_dynamics(config, name, target), risk, theta, 100, kept=False), target)


def test_constant_noise_has_the_trace_at_the_minimum_unless_rho_is_given() -> None:
    risk = digits_problem(SMALL, 0).risk
    theta = risk.parameters()
    matched = make_dynamics(replace(SMALL, rho=None), "gld-constant", 7.0).covariance(risk, theta)
    assert float(matched.trace()) == pytest.approx(7.0, rel=1e-5)
    given = make_dynamics(replace(SMALL, rho=0.1), "gld-constant", 7.0).covariance(risk, theta)
    assert float(given.trace()) == pytest.approx(0.01 * risk.dimension, rel=1e-5)
