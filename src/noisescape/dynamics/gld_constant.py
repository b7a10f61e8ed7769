"""Langevin dynamics with isotropic noise of a constant size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics
from noisescape.linops import DeviationsOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_real


@dataclass(frozen=True)
class GLDConstant(Dynamics):
    """ε ~ N(0, ρ²I).

    Args:
        rho: ρ, the standard deviation of each coordinate of the gradient noise, tuned by hand.
    """

    rho: float
    name: ClassVar[str] = "gld-constant"
    memoryless: ClassVar[bool] = True

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        check_real(f"{self.name}: rho", self.rho, 0)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return DeviationsOperator(torch.full_like(theta, self.rho), name=f"{self.name} covariance"), None
