"""Langevin dynamics with isotropic noise of a constant size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import DiagonalLangevin, check_at_least
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GLDConstant(DiagonalLangevin):
    """ε ~ N(0, ρ²I).

    Args:
        rho: ρ, the standard deviation of each coordinate of the gradient noise, tuned by hand.
    """

    rho: float
    name: ClassVar[str] = "gld-constant"

    def _check(self, risk: EmpiricalRisk) -> None:
        check_at_least("rho", self.rho, 0.0, self.name)

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """ρ everywhere."""
        return torch.full_like(theta, self.rho)
