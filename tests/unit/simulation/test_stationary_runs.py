"""A long run reaches the stationary law."""

from __future__ import annotations

import math

import pytest
import torch

import noisescape as ns
from cases import F64
from simulations import ALL, COVARIANCE, HESSIAN, NOISY, bowl, run
from slowness import quick


def test_curvature_and_noise_of_these_tests_do_not_commute() -> None:
    assert (HESSIAN @ COVARIANCE - COVARIANCE @ HESSIAN).abs().max() > 0.1


@pytest.mark.parametrize("lr", quick([pytest.param(0.9, id="ηλ above 1")], [pytest.param(0.3, id="small ηλ")]))
@pytest.mark.parametrize("name", NOISY)
def test_a_long_run_reaches_the_stationary_covariance(name: str, lr: float) -> None:
    replicas, risk = 2000, bowl()
    slowest = 1 - lr * 0.2
    steps = math.ceil(math.log(1e-4) / math.log(slowest))
    found = run(risk, ALL[name], torch.zeros(3, dtype=F64), lr=lr, steps=steps, replicas=replicas, record={}).theta
    noise = ALL[name].covariance(risk, torch.zeros(3, dtype=F64)).dense()
    expected = ns.theory.stationary_covariance(HESSIAN, noise, lr=lr)
    products = found[:, :, None] * found[:, None, :]
    error = products.std(0) / math.sqrt(replicas)
    assert ((products.mean(0) - expected).abs() <= 4.5 * error).all()
    assert (error <= 0.1 * expected.diagonal().max()).all(), "tight enough to tell a wrong factor"
