"""The dynamics as the published code has them, where it deviates from the method it describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics import SGD, Dynamics, GLDHessian, GLDLeading, dynamics_by_name
from noisescape.dynamics.exact_pairs import tight_pairs
from noisescape.linops import LowRankOperator, SymmetricOperator, eigenpairs
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class PublishedLeading(GLDLeading):
    """Leading noise that is injected on refresh steps only; plain gradient descent between them."""

    @override
    def at_step(self, covariance: SymmetricOperator, step: int) -> SymmetricOperator | None:
        return covariance if step % self.refresh == 0 else None


@dataclass(frozen=True)
class PublishedHessian(GLDHessian):
    """Hessian noise from the k eigenvalues largest in magnitude, c from their signed sum: c·U|Λ|Uᵀ.

    One negative eigenvalue among them, and the injected trace is no longer Tr Σ_B. For a single θ.
    """

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        pairs = eigenpairs(risk.hessian(theta), self.k, which="magnitude", tol=1e-2, subspace=2 * self.k + 1)
        return self._of(pairs.values, pairs.vectors, self.variances(risk, theta)[0]), None

    @override
    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        self.check(risk)
        pairs = tight_pairs(risk.hessian(theta), self.k, which="magnitude")
        return self._of(*pairs, self.variances(risk, theta)[0])

    @override
    def _of(self, values: Tensor, vectors: Tensor, variances: Tensor) -> SymmetricOperator:
        part = LowRankOperator(vectors * values.abs().sqrt(), name=f"{self.name} covariance")
        return part.scaled(variances.sum() / values.sum().abs())


def published_dynamics(name: str, **constants: Any) -> Dynamics:
    """The dynamics called ``name``, deviations and all.

    SGD draws every batch afresh, without replacement within it: Σ_B = (N−B)/(B(N−1))·C. What the other noises take
    their covariance from differs. With VGG-11 it is a hundred batches like SGD's, constants that their preset has:
    ``batches`` and ``replacement``. With FashionMNIST it is the N/B batches of a random partition, whose covariance
    is N/(B(N−1))·C in expectation, so here C/B, that of batches with replacement, exact.
    """
    made = dynamics_by_name(name, **constants)
    batch_size, k, refresh = (constants[key] for key in ("batch_size", "k", "refresh"))
    if isinstance(made, SGD):
        return SGD(batch_size, replacement=False)
    if isinstance(made, GLDLeading):
        return PublishedLeading(batch_size, k=k, refresh=refresh)
    if type(made) is GLDHessian:  # not the first eigenvector alone, which is such a noise too
        return PublishedHessian(batch_size, k=k, refresh=refresh)
    return made
