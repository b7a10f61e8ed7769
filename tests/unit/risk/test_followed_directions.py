"""Directions and covariance roots that are followed along a trajectory are those found afresh."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import noisescape as ns
from cases import generator, normal
from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.models import digits_net
from noisescape.linops import product_trace
from noisescape.risk.hessian_pairs import followed_hessian_pairs, leading_hessian_pairs
from slowness import quick


@pytest.fixture(scope="module")
def digits() -> ns.EmpiricalRisk:
    train = corrupted_digits(seed=0, clean=280, corrupted=20).train
    return ns.EmpiricalRisk(digits_net(0), torch.nn.functional.cross_entropy, train)


@pytest.mark.parametrize("k", [1, 5])
def test_followed_pairs_are_the_leading_ones_nearby_and_cost_less(digits: ns.EmpiricalRisk, k: int) -> None:
    start = ns.simulate(digits, ns.GD(), digits.parameters(), lr=0.1, steps=200, record={}, progress=False).theta
    later = ns.simulate(digits, ns.GD(), start, lr=0.1, steps=10, record={}, progress=False).theta
    _, before = leading_hessian_pairs(digits, start, k)
    values, vectors = followed_hessian_pairs(digits, later, k, before, generator())
    wanted, basis = leading_hessian_pairs(digits, later, k)
    assert_close(values, wanted, rtol=0.03, atol=0)
    weights = wanted / wanted.sum()
    assert float((weights * (vectors.T @ basis).square().sum(0)).sum()) > 0.97


def test_directions_that_were_lost_are_found_afresh(digits: ns.EmpiricalRisk) -> None:
    theta = digits.parameters()
    wanted, basis = leading_hessian_pairs(digits, theta, 2)
    astray = normal(digits.dimension, 2, seed=9, dtype=torch.float32)
    values, vectors = followed_hessian_pairs(digits, theta, 2, astray, generator())
    assert_close(values, wanted, rtol=0.05, atol=0)
    assert vectors.shape == basis.shape


def test_following_survives_a_point_where_nothing_is_finite(digits: ns.EmpiricalRisk) -> None:
    theta = torch.full_like(digits.parameters(), torch.nan)
    values, _ = followed_hessian_pairs(
        digits, theta, 2, normal(digits.dimension, 2, dtype=torch.float32), generator()
    )
    assert values.isnan().all()


@pytest.mark.parametrize(
    "name", quick(["gld-leading", "gld-dynamic"], ["gld-hessian", "gld-top-eigenvector", "gld-diagonal"])
)
def test_refreshed_noise_has_the_trace_and_shape_of_its_covariance(digits: ns.EmpiricalRisk, name: str) -> None:
    """Along a trajectory roots are followed and sketched; afresh they are exact."""
    dynamics = ns.dynamics_by_name(name, batch_size=20, k=5, refresh=5)
    theta = ns.simulate(digits, ns.GD(), digits.parameters(), lr=0.1, steps=200, record={}, progress=False).theta
    state, stream = dynamics.init(digits), generator()
    for _ in range(6):  # the second refresh is at the last step
        here = theta
        gradient, state = dynamics.noisy_gradient(digits, theta, state, stream)
        theta = theta - 0.05 * gradient
    followed, afresh = state.covariance, dynamics.covariance(digits, here)
    assert followed is not None
    assert float(followed.trace()) == pytest.approx(float(afresh.trace()), rel=1e-3)
    against = digits.hessian(here) if name in ("gld-hessian", "gld-top-eigenvector") else afresh
    found, wanted = (product_trace(against, operator, deflate=5).value for operator in (followed, afresh))
    assert found == pytest.approx(wanted, rel=0.02)
