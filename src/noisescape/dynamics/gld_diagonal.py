"""Langevin dynamics with the diagonal of SGD's covariance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.minibatch import MinibatchNoise
from noisescape.linops import DeviationsOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_whole


@dataclass(frozen=True)
class GLDDiagonal(MinibatchNoise):
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

    @property
    def memoryless(self) -> bool:  # type: ignore[override]
        """As its constants have it."""
        return self.refresh == 1

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        if self.batches is not None:
            check_whole(f"{self.name}: batches", self.batches, 2)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        variances, gradient = self.variances(risk, theta, self.batches, generator)
        return self._of(variances), gradient

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        self.check(risk)
        return self._of(self.variances(risk, theta)[0])

    def _of(self, variances: Tensor) -> SymmetricOperator:
        return DeviationsOperator(variances.sqrt(), name=f"{self.name} covariance")
