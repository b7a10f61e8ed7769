"""Short runs of every dynamics on a quadratic whose noise does not commute with its Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

import noisescape as ns
from cases import F64, normal, symmetric
from noisescape.simulation import Trajectory
from noisescape.theory.landscapes import quadratic

CONSTANTS = {"batch_size": 3, "k": 2, "rho": 0.05, "refresh": 1, "strength": 0.01}


ALL = {name: ns.dynamics_by_name(name, **CONSTANTS) for name in ns.DYNAMICS}


NOISY = [name for name, dynamics in ALL.items() if not isinstance(dynamics, ns.GD)]


HESSIAN = symmetric(3, torch.tensor([1.5, 0.6, 0.2]), seed=1)


GRADIENTS = normal(8, 3, seed=2) * torch.tensor([1.0, 2.0, 0.5])


COVARIANCE = GRADIENTS.sub(GRADIENTS.mean(0)).T @ GRADIENTS.sub(GRADIENTS.mean(0)) / len(GRADIENTS)


START = torch.tensor([1.0, -2.0, 0.5], dtype=F64)


def bowl() -> ns.EmpiricalRisk:
    return quadratic(HESSIAN, GRADIENTS)


def run(
    risk: ns.EmpiricalRisk, dynamics: ns.Dynamics, theta: Tensor, lr: float = 0.1, steps: int = 10, **options
) -> Trajectory:
    return ns.simulate(risk, dynamics, theta, lr=lr, steps=steps, progress=False, **options)
