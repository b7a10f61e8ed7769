"""The stationary law of the discrete recursion, and its limits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import F64, symmetric
from simulations import COVARIANCE, HESSIAN


def covariances(lr: float, steps: int) -> Tensor:
    """Cov θ_k by the recursion, one step at a time."""
    contraction = torch.eye(3, dtype=F64) - lr * HESSIAN
    spread = torch.zeros(3, 3, dtype=F64)
    for _ in range(steps):
        spread = contraction @ spread @ contraction.T + lr**2 * COVARIANCE
    return spread


@pytest.mark.parametrize("lr", [0.01, 0.3, 1.2])
@pytest.mark.parametrize("steps", [1, 7, 200])
def test_expected_excess_loss_is_that_of_the_recursion(lr: float, steps: int) -> None:
    expected = 0.5 * (HESSIAN * covariances(lr, steps)).sum()
    found = ns.theory.expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, steps=steps)
    assert_close(found, expected, rtol=1e-10, atol=0)


def test_expected_excess_loss_counts_flat_and_marginal_directions() -> None:
    """ηλ = 0 adds nothing; ηλ = 2 grows linearly; ηλ > 2 exponentially."""
    noise = torch.eye(1, dtype=F64)
    for value, expected in ((0.0, 0.0), (2.0, 10.0), (3.0, 1.5 * sum(4.0**k for k in range(10)))):
        found = ns.theory.expected_excess_loss(value * noise, noise, lr=1.0, steps=10)
        assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lr", [0.05, 0.4, 1.2])
def test_stationary_covariance_is_the_recursions_limit(lr: float) -> None:
    found = ns.theory.stationary_covariance(HESSIAN, COVARIANCE, lr=lr)
    assert_close(found, covariances(lr, 5000), rtol=1e-9, atol=1e-12)
    long = ns.theory.expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, steps=5000)
    assert_close(0.5 * (HESSIAN * found).sum(), long, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("values", "lr"), [([1.0, 0.0, 1.0], 0.1), ([1.0, -1.0, 1.0], 0.1), ([1.0, 0.5, 20.0], 0.1)]
)
def test_without_a_stationary_law_there_is_a_clear_error(values: list[float], lr: float) -> None:
    with pytest.raises(ValueError, match=r"must lie strictly between 0 and 2/lr = 20"):
        ns.theory.stationary_covariance(torch.diag(torch.tensor(values, dtype=F64)), COVARIANCE, lr=lr)


@pytest.mark.parametrize(
    "hessian",
    [
        torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=F64)),
        torch.diag(torch.tensor([1.0, -1.0, 2.0], dtype=F64)),
        symmetric(3, torch.tensor([0.0, 1.0, 2.0]), seed=4),  # 0 up to rounding
    ],
    ids=["flat", "a saddle", "singular"],
)
def test_a_hessian_that_is_not_positive_has_no_stationary_law_in_the_limit_either(hessian: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no stationary law: .* must lie strictly between 0 and ∞"):
        ns.theory.ou_stationary_covariance(hessian, COVARIANCE, lr=0.1)
    with pytest.raises(ValueError, match="no stationary law"):
        ns.theory.stationary_covariance(hessian, COVARIANCE, lr=0.1)


def test_ornstein_uhlenbeck_is_the_first_order_limit_of_the_discrete_formula() -> None:
    time = 1.5

    def gap(lr: float) -> float:
        exact = ns.theory.expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, steps=round(time / lr))
        limit = ns.theory.ou_expected_excess_loss(HESSIAN, COVARIANCE, lr=lr, time=time)
        return float(exact / limit - 1)

    gaps = [gap(time / steps) for steps in (300, 600, 1200, 2400)]
    for coarse, fine in itertools.pairwise(gaps):
        assert coarse / fine == pytest.approx(2, rel=0.02)
    assert 0 < gaps[-1] < 1e-3


def test_the_indicator_is_the_short_time_limit() -> None:
    product = float((HESSIAN * COVARIANCE).sum())
    for time, closeness in ((1e-2, 2e-2), (1e-4, 2e-4), (1e-6, 2e-6)):
        early = float(ns.theory.ou_expected_excess_loss(HESSIAN, COVARIANCE, lr=0.1, time=time))
        assert early == pytest.approx(ns.theory.escaping_efficiency(product, lr=0.1, time=time), rel=closeness)


def test_after_long_only_the_trace_of_the_noise_counts() -> None:
    late = ns.theory.ou_expected_excess_loss(HESSIAN, COVARIANCE, lr=0.1, time=1e4)
    assert_close(late, 0.1 / 4 * COVARIANCE.trace(), rtol=1e-12, atol=0)


def test_ou_stationary_covariance_solves_lyapunovs_equation_and_is_the_small_step_limit() -> None:
    found = ns.theory.ou_stationary_covariance(HESSIAN, COVARIANCE, lr=0.1)
    assert_close(HESSIAN @ found + found @ HESSIAN, 0.1 * COVARIANCE, rtol=1e-12, atol=1e-14)
    eye = torch.eye(3, dtype=F64)
    by_kronecker = torch.linalg.solve(
        torch.kron(HESSIAN, eye) + torch.kron(eye, HESSIAN), 0.1 * COVARIANCE.flatten()
    )
    assert_close(found.flatten(), by_kronecker, rtol=1e-10, atol=1e-14)
    gaps = []
    for lr in (0.02, 0.01):
        discrete = ns.theory.stationary_covariance(HESSIAN, COVARIANCE, lr=lr)
        gaps.append(float((discrete - ns.theory.ou_stationary_covariance(HESSIAN, COVARIANCE, lr=lr)).norm() / lr))
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)
