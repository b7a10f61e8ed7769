"""Langevin dynamics with the diagonal of SGD's covariance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import DiagonalLangevin, MinibatchNoise
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GLDDiagonal(MinibatchNoise, DiagonalLangevin):
    """ε ~ N(0, diag Σ_B(θ_t)): each coordinate's own variance, no correlations.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations of the diagonal.
        batches: estimate it along a trajectory from so many minibatches in place of all samples.
    """

    refresh: int = field(default=1, kw_only=True)
    batches: int | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "gld-diagonal"

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """√diag Σ_B."""
        return self.variances(risk, theta).sqrt()

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """√diag Σ_B, from ``batches`` minibatches where so many are asked for."""
        if self.batches is not None:
            return self.variances_of_batches(risk, theta, self.batches, generator).sqrt(), None
        slope, variances = self.moments(risk, theta)
        return variances.sqrt(), slope
