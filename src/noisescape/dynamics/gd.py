"""Gradient descent: no noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics, NoiseState
from noisescape.linops import DiagonalOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GD(Dynamics):
    """θ ← θ − η∇L(θ). Covariance 0."""

    name: ClassVar[str] = "gd"
    memoryless: ClassVar[bool] = True

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return DiagonalOperator(torch.zeros_like(theta), name=f"{self.name} covariance"), None

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        return risk.gradient(theta), state.next()
