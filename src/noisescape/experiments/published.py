"""The dynamics as the published code has them, where it deviates from the method it describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisescape.dynamics import SGD, Dynamics, GLDHessian, GLDLeading, dynamics_by_name
from noisescape.dynamics.exact_pairs import tight_pairs
from noisescape.linops import eigenpairs
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class PublishedLeading(GLDLeading):
    """Leading noise that is injected on refresh steps only; plain gradient descent between them."""

    def injects(self, step: int) -> bool:
        """On refresh steps."""
        return step % self.refresh == 0


@dataclass(frozen=True)
class PublishedHessian(GLDHessian):
    """Hessian noise from the k eigenvalues largest in magnitude, c from their signed sum.

    One negative eigenvalue among them, and the injected trace is no longer Tr Σ_B.
    """

    def root(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        """U√|λ| times √(Tr Σ_B / |Σλ|)."""
        return self._scaled(risk, theta, *tight_pairs(risk.hessian(theta), self.k, which="magnitude"))

    def refresh_root(
        self, risk: EmpiricalRisk, theta: Tensor, previous: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Afresh each time, eigenvalues to a per cent."""
        pairs = eigenpairs(risk.hessian(theta), self.k, which="magnitude", tol=1e-2, subspace=2 * self.k + 1)
        return self._scaled(risk, theta, pairs.values, pairs.vectors), None

    def _scaled(self, risk: EmpiricalRisk, theta: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        factor = (self.variances(risk, theta).sum() / values.sum().abs()).sqrt()
        return self.scale(vectors * values.abs().sqrt(), factor)


def published_dynamics(name: str, **constants: Any) -> Dynamics:
    """The dynamics called ``name``, deviations and all.

    SGD draws its batches from a partition, that is without replacement; the other noises take their
    covariance from the means of such a partition, which overestimates it by 1/(1 − B/N) and so comes to C/B,
    up to 1/N.
    """
    made = dynamics_by_name(name, **constants)
    batch_size, k, refresh = (constants[key] for key in ("batch_size", "k", "refresh"))
    if isinstance(made, SGD):
        return SGD(batch_size, replacement=False)
    if isinstance(made, GLDLeading):
        return PublishedLeading(batch_size, k=k, refresh=refresh)
    if isinstance(made, GLDHessian):
        return PublishedHessian(batch_size, k=k, refresh=refresh)
    return made
