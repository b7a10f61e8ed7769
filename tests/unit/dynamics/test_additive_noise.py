"""Noise of one covariance wherever θ is: in half precision too, and refused where it does not fit."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from noisescape.theory.landscapes import quadratic

F64 = torch.float64
GRADIENTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, -2.5]], dtype=F64)


def frozen(at=(0.0, 0.0), batch=1):
    risk = quadratic(torch.eye(2, dtype=F64), GRADIENTS)
    return risk, ns.Additive(risk.noise_covariance(torch.tensor(at, dtype=F64), batch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).to(dtype)
    risk = ns.EmpiricalRisk(model, torch.nn.MSELoss(), (torch.randn(8, 3).to(dtype), torch.randn(8, 2).to(dtype)))
    theta = risk.parameters()
    noise = ns.Additive(risk.noise_covariance(theta, 2))
    assert ns.simulate(risk, noise, theta, lr=0.01, steps=2, progress=False).theta.dtype == dtype


def test_the_noise_does_not_move_with_the_iterate():
    """On ℓ = ½(wx)² SGD's noise grows with w; this one stays what it was at w = 1."""
    inputs = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    risk = ns.EmpiricalRisk.from_losses(lambda w: 0.5 * (w * inputs).square(), torch.ones(1, dtype=F64))
    noise = ns.Additive(risk.noise_covariance(torch.ones(1, dtype=F64), 1))
    far, near = (noise.covariance(risk, torch.full((1,), at, dtype=F64)).dense() for at in (10.0, 1.0))
    assert torch.equal(far, near)
    assert float(near) == pytest.approx(float(inputs.square().var(unbiased=False)))


def test_another_covariance_is_another_run():
    one, other = frozen()[1], frozen(batch=2)[1]
    assert repr(one) == repr(frozen()[1])
    assert repr(one) != repr(other)


def test_what_does_not_fit_is_refused():
    noise = frozen()[1]
    with pytest.raises(TypeError, match="the covariance must be an operator"):
        ns.Additive(torch.eye(2))
    wider = quadratic(torch.eye(3, dtype=F64), torch.randn(4, 3, dtype=F64))
    with pytest.raises(ValueError, match="the covariance is of 2 parameters, the risk has 3"):
        ns.simulate(wider, noise, torch.zeros(3, dtype=F64), lr=0.1, steps=1, progress=False)
