"""Gradient descent: no noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import Dynamics, NoiseState
from noisescape.linops import DiagonalOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GD(Dynamics):
    """θ ← θ − η∇L(θ). Covariance 0."""

    name: ClassVar[str] = "gd"

    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        """∇L(θ)."""
        return risk.gradient(theta), replace(state, step=state.step + 1)

    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """The zero operator."""
        return DiagonalOperator(torch.zeros_like(theta), name="gd covariance")
