"""Linear algebra of vectors as long as θ, which single precision adds up one by one on a CPU.

The norm of 10⁸ random numbers comes out 1.1 % too small there, a matrix product of one row and one column 27 %;
LAPACK's orthonormal columns are 0.3 % from being so. Sums of at most :data:`LONGEST` numbers
are as good as single precision is, and adding those up in double precision costs nothing that can be measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 2**16
"""Numbers added up in one go. Measured: decision 29."""


def inner_products(rows: Tensor, columns: Tensor) -> Tensor:
    """XY of long rows and columns, (..., n, D) and (..., D, K) → (..., n, K)."""
    if rows.shape[-1] <= LONGEST or rows.dtype == torch.float64:
        return rows @ columns
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for some, its_columns in zip(rows.split(LONGEST, dim=-1), columns.split(LONGEST, dim=-2), strict=True):
        total = total + some @ its_columns
    return total.to(rows.dtype)


def inner_product(one: Tensor, other: Tensor) -> Tensor:
    """xᵀy of two vectors, (D,) → ()."""
    if len(one) <= LONGEST or one.dtype == torch.float64:
        return torch.dot(one, other)
    parts = zip(one.split(LONGEST), other.split(LONGEST), strict=True)
    return torch.stack([torch.dot(*part) for part in parts]).sum(dtype=torch.float64).to(one.dtype)


def lengths(vectors: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    """‖x‖ of vectors that lie along a dimension, which the result lacks; added up in another precision if given."""
    if vectors.shape[dim] <= LONGEST or vectors.dtype == torch.float64:
        return torch.linalg.vector_norm(vectors, dim=dim, dtype=dtype)
    parts = [torch.linalg.vector_norm(some, dim=dim, dtype=dtype) for some in vectors.split(LONGEST, dim=dim)]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def squared_length(numbers: Tensor) -> float:
    """The sum of all squares, in float64: it takes ten times as long as :func:`lengths`."""
    return float(torch.linalg.vector_norm(numbers, dtype=torch.float64)) ** 2


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span, (D, K).

    Where LAPACK's is not orthonormal, for its own sums are long, it is divided by the root of its Gram matrix.
    """
    basis = torch.linalg.qr(columns).Q
    if len(basis) <= LONGEST or basis.dtype == torch.float64:
        return basis
    gram = inner_products(basis.mT, basis).double()
    root = torch.linalg.cholesky_ex(gram)[0]
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    correction = torch.linalg.solve_triangular(root, identity, upper=False).mT.to(basis.dtype)
    for some in basis.split(LONGEST):
        some.copy_(some @ correction)
    return basis


def left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The left singular vectors as columns and the singular values, decreasing: (D, K) → (D, K), (K,), K ≤ D."""
    if matrix.shape[-2] <= LONGEST or matrix.dtype == torch.float64:
        vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return vectors, values
    basis = orthonormal(matrix)
    vectors, values, _ = torch.linalg.svd(inner_products(basis.mT, matrix))
    return basis @ vectors, values


def project_out(basis: Tensor, columns: Tensor) -> Tensor:
    """(I − U Uᵀ) X for an orthonormal U, (D, m) and (D, K)."""
    return columns - basis @ inner_products(basis.mT, columns)
