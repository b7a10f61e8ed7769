"""Langevin dynamics within the leading directions of SGD's covariance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import check_rank
from noisescape.dynamics.exact_pairs import exact_noise_pairs
from noisescape.dynamics.minibatch import MinibatchNoise
from noisescape.linops import LowRankOperator, SymmetricOperator, eigenpairs
from noisescape.linops.gram import leading_pairs, sketched_pairs
from noisescape.linops.structured import with_trace
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradients import factored_gradients, fits_gradients
from noisescape.scalars import check_flag


@dataclass(frozen=True)
class GLDLeading(MinibatchNoise):
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

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        check_rank(self.k, risk, self.name)
        check_flag(f"{self.name}: rescale", self.rescale)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        if theta.ndim == 1 and not fits_gradients(risk, theta):
            sigma, _ = super().noise(risk, theta, previous, generator)
            found = eigenpairs(sigma, self.k)
            return self._of(found.values, found.vectors, sigma.trace() if self.rescale else None), None
        variances = None
        if theta.ndim == 1:
            gradients = factored_gradients(risk, theta)
            values, vectors = sketched_pairs(gradients, self.k, centred=True)
            gradient, variances = gradients.moments() if self.rescale else (gradients.mean(), None)
        else:
            rows = risk.per_sample_gradients(theta)
            gradient = rows.mean(-2)
            rows = rows - gradient[..., None, :]
            values, vectors = leading_pairs(rows, self.k)
            variances = rows.square().mean(-2) if self.rescale else None
        factor = self.factor(risk)
        trace = None if variances is None else factor * variances.sum(-1)
        return self._of(factor / risk.sample_count * values, vectors, trace), gradient

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        self.check(risk)
        values, vectors = exact_noise_pairs(risk, theta, self.k)
        trace = self.variances(risk, theta)[0].sum(-1) if self.rescale else None
        return self._of(self.factor(risk) * values, vectors, trace)

    def _of(self, values: Tensor, vectors: Tensor, trace: Tensor | None) -> SymmetricOperator:
        """UΛUᵀ, scaled to a trace if one is given."""
        root = vectors * values.clamp_min(0).sqrt()[..., None, :]
        part = LowRankOperator(root, name=f"{self.name} covariance")
        return part if trace is None else with_trace(part, trace)
