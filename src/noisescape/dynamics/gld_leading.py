"""Langevin dynamics within the leading directions of SGD's covariance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import LowRankLangevin, MinibatchNoise
from noisescape.dynamics.exact_pairs import exact_noise_pairs
from noisescape.linops import eigenpairs
from noisescape.linops.gram import leading_pairs, sketched_pairs
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradient_covariance import moments_of
from noisescape.risk.gradients import factored_gradients, fits_gradients


@dataclass(frozen=True)
class GLDLeading(MinibatchNoise, LowRankLangevin):
    """ε ~ N(0, Σ_k), Σ_k the best rank-k approximation of Σ_B(θ_t).

    :meth:`covariance` is exact. Along a trajectory Σ_k comes from a randomised sketch of the gradients where those
    are many: within a per cent of the best trace where the spectrum decays. Where it is flat, and no few directions
    stand out, its directions are not the best ones and carry up to a tenth less.

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
        """U√λ of the k leading eigenpairs of Σ_B, exact; fewer columns where its rank is lower."""
        values, vectors = exact_noise_pairs(risk, theta, self.k)
        return vectors * (self.covariance_factor(risk) * values.clamp_min(0)).sqrt()[..., None, :]

    def root(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """As :meth:`shape`, scaled to Tr Σ_B if asked for."""
        root = self.shape(risk, theta)
        return self.rescaled(root, self.variances(risk, theta).sum(-1)) if self.rescale else root

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """U√λ from a sketch where one is cheaper, and the mean of the per-sample gradients where those are held."""
        factor = self.covariance_factor(risk) / risk.sample_count
        if theta.ndim == 1 and not fits_gradients(risk, theta):
            found = eigenpairs(risk.noise_covariance(theta, self.batch_size, replacement=self.replacement), self.k)
            root = found.vectors * found.values.clamp_min(0).sqrt()
            return (self.rescaled(root, self.variances(risk, theta).sum(-1)) if self.rescale else root), None
        if theta.ndim == 1:
            gradients = factored_gradients(risk, theta)
            values, vectors = sketched_pairs(gradients, self.k, centred=True)
            slope, variances = moments_of(gradients) if self.rescale else (gradients.mean(), None)
        else:
            rows = risk.per_sample_gradients(theta)
            slope = rows.mean(-2)
            rows = rows - slope[..., None, :]
            values, vectors = leading_pairs(rows, self.k)
            variances = rows.square().mean(-2) if self.rescale else None
        root = vectors * (factor * values).sqrt()[..., None, :]
        if variances is not None:
            root = self.rescaled(root, risk.sample_count * factor * variances.sum(-1))
        return root, slope
