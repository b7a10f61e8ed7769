"""Langevin dynamics along the first eigenvector of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.gld_hessian import GLDHessian
from noisescape.linops import LowRankOperator, SymmetricOperator
from noisescape.linops.structured import with_trace


@dataclass(frozen=True)
class GLDTopEigenvector(GLDHessian):
    """ε ~ N(0, Tr Σ_B(θ_t)·u₁u₁ᵀ), u₁ the first eigenvector of H(θ_t): the largest Tr(HΣ) at this trace.

    :meth:`covariance` takes it exactly, a trajectory follows it to a per cent of its curvature.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations.
    """

    k: int = field(default=1, init=False, repr=False)
    name: ClassVar[str] = "gld-top-eigenvector"

    @override
    def _of(self, values: Tensor, vectors: Tensor, variances: Tensor) -> SymmetricOperator:
        """Whatever the sign of λ₁."""
        return with_trace(LowRankOperator(vectors, name=f"{self.name} covariance"), variances.sum(-1))
