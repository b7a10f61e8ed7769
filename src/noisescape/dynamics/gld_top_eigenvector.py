"""Langevin dynamics along the first eigenvector of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import LowRankLangevin, MatchedToMinibatch
from noisescape.dynamics.exact_pairs import exact_hessian_pairs
from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian_pairs import followed_hessian_pairs


@dataclass(frozen=True)
class GLDTopEigenvector(MatchedToMinibatch, LowRankLangevin):
    """ε ~ N(0, Tr Σ_B(θ_t)·u₁u₁ᵀ), u₁ the first eigenvector of H(θ_t): the largest Tr(HΣ) at this trace.

    :meth:`covariance` takes it exactly, a trajectory follows it to a per cent of its curvature.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations.
    """

    refresh: int = field(default=10, kw_only=True)
    name: ClassVar[str] = "gld-top-eigenvector"

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """u₁."""
        return exact_hessian_pairs(risk, theta, 1)[1]

    def refresh_shape(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """u₁, followed from the previous one."""
        return followed_hessian_pairs(risk, theta, 1, previous, generator)[1]
