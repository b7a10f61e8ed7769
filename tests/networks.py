"""Small double-precision networks: one over 60 samples of 6 numbers in 3 classes, and one that fits its targets."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from cases import F64, classes, normal
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import dense_hessian

X, Y = normal(60, 6, seed=1), classes(60, of=3, seed=2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(F64)


def flat_gradient(model: nn.Module, value: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def classifier_risk(model: nn.Module, inputs: Tensor, dtype: torch.dtype = F64) -> EmpiricalRisk:
    """Cross-entropy over random classes."""
    return EmpiricalRisk(
        model.to(dtype), nn.functional.cross_entropy, (inputs.to(dtype), classes(len(inputs), of=3, seed=2))
    )


@functools.cache
def fitted_risk(residual: float) -> tuple[EmpiricalRisk, Tensor]:
    """A network whose targets are what it puts out, but for a residual."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(F64)
    inputs = normal(60, 6, seed=1)
    targets = model(inputs).detach() + residual * normal(60, 3, seed=2)
    risk = EmpiricalRisk(model, nn.functional.mse_loss, (inputs, targets))
    return risk, risk.parameters()


@functools.cache
def indicator_operands(residual: float) -> dict[str, SymmetricOperator]:
    risk, theta = fitted_risk(residual)
    return {
        "left": risk.hessian(theta),
        "right": risk.noise_covariance(theta, 3),
        "control": risk.gauss_newton(theta),
    }


@functools.cache
def exact_indicator(residual: float) -> float:
    risk, theta = fitted_risk(residual)
    return float((dense_hessian(risk, theta) * risk.noise_covariance(theta, 3).dense()).sum())
