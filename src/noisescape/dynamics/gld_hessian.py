"""Langevin dynamics shaped by the Hessian, as large as SGD's noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import check_rank
from noisescape.dynamics.exact_pairs import exact_hessian_pairs
from noisescape.dynamics.minibatch import MinibatchNoise
from noisescape.linops import LowRankOperator, SymmetricOperator
from noisescape.linops.structured import with_trace
from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian_pairs import followed_hessian_pairs


@dataclass(frozen=True)
class GLDHessian(MinibatchNoise):
    """ε ~ N(0, c·H_k), H_k the PSD part of rank ≤ k of H(θ_t), c such that the trace is Tr Σ_B.

    The k algebraically largest eigenvalues are taken and negative ones dropped; no noise where all are. (The
    published code takes the k largest in magnitude, which breaks the trace match when one is negative.)
    :meth:`covariance` takes them exactly, a trajectory follows them to a per cent of their curvature.

    Args:
        batch_size: B of the matched SGD.
        k: eigenpairs of H, at most D.
        replacement: its sampling law.
        refresh: steps between two computations.
    """

    k: int = field(default=20, kw_only=True)
    refresh: int = field(default=10, kw_only=True)
    name: ClassVar[str] = "gld-hessian"

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        check_rank(self.k, risk, self.name)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        variances, gradient = self.variances(risk, theta)
        directions = previous.factor if isinstance(previous, LowRankOperator) else None
        values, vectors = followed_hessian_pairs(risk, theta, self.k, directions, generator)
        return self._of(values, vectors, variances), gradient

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        self.check(risk)
        return self._of(*exact_hessian_pairs(risk, theta, self.k), self.variances(risk, theta)[0])

    def _of(self, values: Tensor, vectors: Tensor, variances: Tensor) -> SymmetricOperator:
        """c·UΛ₊Uᵀ."""
        root = vectors * values.clamp_min(0).sqrt()[..., None, :]
        return with_trace(LowRankOperator(root, name=f"{self.name} covariance"), variances.sum(-1))
