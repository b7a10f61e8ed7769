"""Langevin dynamics with isotropic noise as large as SGD's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from noisescape.dynamics.base import DiagonalLangevin, MinibatchNoise
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GLDDynamic(MinibatchNoise, DiagonalLangevin):
    """ε ~ N(0, σ_t²I), σ_t² = Tr Σ_B(θ_t)/D: SGD's magnitude without its shape.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations of Tr Σ_B.
    """

    refresh: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "gld-dynamic"

    def root(self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None) -> Tensor:
        """√(Tr Σ_B/D) everywhere."""
        variance = self.variances(risk, theta).mean(-1, keepdim=True)
        return variance.sqrt().expand_as(theta)
