"""Langevin dynamics shaped by the Hessian, as large as SGD's noise."""

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
class GLDHessian(MatchedToMinibatch, LowRankLangevin):
    """ε ~ N(0, c·H_k), H_k the PSD part of rank ≤ k of H(θ_t), c such that the trace is Tr Σ_B.

    The k algebraically largest eigenvalues are taken and negative ones dropped. (The published code takes
    the k largest in magnitude, which breaks the trace match when one is negative.) :meth:`covariance` takes them
    exactly, a trajectory follows them to a per cent of their curvature.

    Args:
        batch_size: B of the matched SGD.
        k: eigenpairs of H, at most D.
        replacement: its sampling law.
        refresh: steps between two computations.
    """

    k: int = field(default=20, kw_only=True)
    refresh: int = field(default=10, kw_only=True)
    name: ClassVar[str] = "gld-hessian"

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """U√λ₊; all zero where H has no positive eigenvalue."""
        return _root_of(*exact_hessian_pairs(risk, theta, self.k))

    def refresh_shape(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """U√λ₊, followed from the previous directions."""
        return _root_of(*followed_hessian_pairs(risk, theta, self.k, previous, generator))


def _root_of(values: Tensor, vectors: Tensor) -> Tensor:
    return vectors * values.clamp_min(0).sqrt()[..., None, :]
