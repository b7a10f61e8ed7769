"""Langevin dynamics with isotropic noise as large as SGD's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.gld_diagonal import GLDDiagonal
from noisescape.linops import DeviationsOperator, SymmetricOperator


@dataclass(frozen=True)
class GLDDynamic(GLDDiagonal):
    """ε ~ N(0, σ_t²I), σ_t² = Tr Σ_B(θ_t)/D: SGD's magnitude without its shape.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        refresh: steps between two computations of Tr Σ_B.
        batches: estimate it along a trajectory from so many minibatches in place of all samples.
    """

    name: ClassVar[str] = "gld-dynamic"

    @override
    def _of(self, variances: Tensor) -> SymmetricOperator:
        deviation = (variances.sum(-1, keepdim=True) / variances.shape[-1]).sqrt()
        return DeviationsOperator(deviation.expand_as(variances), name=f"{self.name} covariance")
