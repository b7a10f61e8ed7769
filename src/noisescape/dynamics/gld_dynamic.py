"""Langevin dynamics with isotropic noise as large as SGD's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import DiagonalLangevin, MatchedToMinibatch
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GLDDynamic(MatchedToMinibatch, DiagonalLangevin):
    """ε ~ N(0, σ_t²I), σ_t² = Tr Σ_B(θ_t)/D: SGD's magnitude without its shape.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations of Tr Σ_B.
        batches: estimate it along a trajectory from so many minibatches in place of all samples.
    """

    refresh: int = field(default=1, kw_only=True)
    batches: int | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "gld-dynamic"

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(theta)

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """√(Tr Σ_B/D), from ``batches`` minibatches where so many are asked for."""
        if self.batches is None:
            return super().refresh_root(risk, theta, previous, generator)
        variances = self.variances_of_batches(risk, theta, self.batches, generator)
        return self.rescaled(self.shape(risk, theta), variances.sum(-1)), None
