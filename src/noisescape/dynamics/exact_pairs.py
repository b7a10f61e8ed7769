"""Leading eigenpairs as a claimed covariance needs them: not to the per cent that the shape of a noise needs."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.linops import SymmetricOperator, eigenpairs
from noisescape.linops.eigen import Which
from noisescape.linops.gram import leading_pairs
from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian_pairs import SMALL, leading_hessian_pairs

TIGHT = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Relative accuracy of eigenvalues: about that of the products themselves."""


def tight_pairs(operator: SymmetricOperator, k: int, *, which: Which = "largest") -> tuple[Tensor, Tensor]:
    """The k leading eigenpairs of A to rounding: values (k,), vectors (D, k); fewer where A's rank is lower.

    From the operator's own structure where it knows them, else by LAPACK or tightly converged Lanczos. Where the
    k-th and the next eigenvalue coincide, any of the best parts of rank k.

    Raises:
        RuntimeError: no convergence.
    """
    if which == "largest" and (known := operator.leading(k)) is not None:
        return known
    # many Lanczos vectors: eigenvalues close together, as in a flat spectrum, part slowly among few
    subspace = min(operator.size, max(4 * k, 64))
    found = eigenpairs(operator, k, which=which, tol=TIGHT[operator.dtype], subspace=max(subspace, k + 2))
    return found.values, found.vectors


def exact_hessian_pairs(risk: EmpiricalRisk, theta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k algebraically largest eigenpairs of H to rounding: (k,) and (D, k), or with a leading R."""
    if risk.dimension <= SMALL:
        return leading_hessian_pairs(risk, theta, k)  # dense, all replicas at once
    if theta.ndim == 1:
        return tight_pairs(risk.hessian(theta), k)
    found = [exact_hessian_pairs(risk, row, k) for row in theta]
    return torch.stack([values for values, _ in found]), torch.stack([vectors for _, vectors in found])


def exact_noise_pairs(risk: EmpiricalRisk, theta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k leading eigenpairs of C to rounding: (k,) and (D, k), fewer if its rank is lower; or with a leading R.

    C is the covariance of single gradients, Σ_B times what the batch takes off.
    """
    if theta.ndim == 1:
        return tight_pairs(risk.noise_covariance(theta, 1), k)
    rows = risk.per_sample_gradients(theta)
    values, vectors = leading_pairs(rows - rows.mean(-2, keepdim=True), k)
    return values / risk.sample_count, vectors
