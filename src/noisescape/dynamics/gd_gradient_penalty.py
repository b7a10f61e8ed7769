"""Gradient descent with an explicit penalty on the gradient's norm: a control without any noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import Dynamics, NoiseState, check_at_least
from noisescape.linops import DiagonalOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GDGradientPenalty(Dynamics):
    """θ ← θ − η∇(L + s‖∇L‖²) = θ − η(∇L + 2sH∇L): deterministic, one Hessian product a step.

    Backward error analysis finds such a penalty in SGD itself, with s = η/4 (Smith et al. 2021); full-batch
    training with it does about as well (Geiping et al. 2021, arXiv 2109.14119). If it flattens as SGD does,
    flattening does not need noise.

    Args:
        strength: s.
    """

    strength: float
    name: ClassVar[str] = "gd-gradient-penalty"

    def _check(self, risk: EmpiricalRisk) -> None:
        check_at_least("strength", self.strength, 0.0, self.name)

    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        """∇L + 2sH∇L."""
        slope = risk.gradient(theta)
        bend = risk.hvp(theta, slope)
        return slope + 2 * self.strength * bend, replace(state, step=state.step + 1)

    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """0: there is no noise."""
        return DiagonalOperator(torch.zeros_like(theta), name=f"{self.name} covariance")
