"""Langevin dynamics along the first eigenvector of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.exact_pairs import exact_hessian_pairs
from noisescape.dynamics.minibatch import MinibatchNoise
from noisescape.linops import LowRankOperator, SymmetricOperator
from noisescape.linops.structured import with_trace
from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian_pairs import followed_hessian_pairs


@dataclass(frozen=True)
class GLDTopEigenvector(MinibatchNoise):
    """ε ~ N(0, Tr Σ_B(θ_t)·u₁u₁ᵀ), u₁ the first eigenvector of H(θ_t): the largest Tr(HΣ) at this trace.

    :meth:`covariance` takes it exactly, a trajectory follows it to a per cent of its curvature.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations.
    """

    refresh: int = field(default=10, kw_only=True)
    name: ClassVar[str] = "gld-top-eigenvector"

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        variances, gradient = self.variances(risk, theta)
        directions = previous.factor if isinstance(previous, LowRankOperator) else None
        _, vector = followed_hessian_pairs(risk, theta, 1, directions, generator)
        return self._of(vector, variances), gradient

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        self.check(risk)
        return self._of(exact_hessian_pairs(risk, theta, 1)[1], self.variances(risk, theta)[0])

    def _of(self, vector: Tensor, variances: Tensor) -> SymmetricOperator:
        return with_trace(LowRankOperator(vector, name=f"{self.name} covariance"), variances.sum(-1))
