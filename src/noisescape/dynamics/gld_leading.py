"""Langevin dynamics within the leading directions of SGD's covariance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from noisescape.dynamics.base import LowRankLangevin, MinibatchNoise
from noisescape.gradient_noise import leading_pairs
from noisescape.linops import eigenpairs
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class GLDLeading(MinibatchNoise, LowRankLangevin):
    """ε ~ N(0, Σ_k), Σ_k the best rank-k approximation of Σ_B(θ_t).

    Args:
        batch_size: B of the matched SGD.
        k: directions kept, at most D.
        replacement: its sampling law.
        refresh: steps between two computations of the directions; noise is injected on every step.
        rescale: whether Σ_k is scaled up to Tr Σ_B; otherwise it lacks the trace of the rest.
    """

    k: int = field(default=20, kw_only=True)
    refresh: int = field(default=10, kw_only=True)
    rescale: bool = field(default=False, kw_only=True)
    name: ClassVar[str] = "gld-leading"

    def shape(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """U√λ of the k leading eigenpairs of Σ_B."""
        factor = self.covariance_factor(risk)
        if theta.ndim == 2:
            rows = risk.per_sample_gradients(theta)
            rows = rows - rows.mean(-2, keepdim=True)
            values, vectors = leading_pairs(rows, self.k)
            values = values * (factor / risk.sample_count)
        else:
            covariance = risk.noise_covariance(theta, self.batch_size, replacement=self.replacement)
            pairs = covariance.leading(self.k)
            if pairs is None:
                found = eigenpairs(covariance, self.k)
                pairs = found.values.clamp_min(0), found.vectors
            values, vectors = pairs
        root = vectors * values.sqrt()[..., None, :]
        if self.rescale:
            root = self.rescaled(root, self.variances(risk, theta).sum(-1))
        return root
