"""Leading eigenpairs with their residuals."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from noisescape.errors import FailedError, InvalidValueError
from noisescape.linops.lanczos import gauss_quadratures
from noisescape.linops.operator import FunctionOperator, SymmetricOperator, check_operand
from noisescape.linops.precision import full_precision
from noisescape.linops.tall import inner_products, left_singular, lengths, project_out
from noisescape.scalars import check_real, check_seed, check_whole

Which = Literal["largest", "smallest", "magnitude"]
DEFAULT_SUBSPACE = 20
"""SciPy's own. Once pairs left out are looked for, 32 and 48 give as many right answers at as many products."""
_ARPACK = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
DENSE_BELOW = 128
OVERLOOKED_STEPS = 16
"""Of the eigenvalues 40, 39, … 1, each ten times, ARPACK alone leaves some out with all of 40 seeds. With 6, 10
and 16 such steps (32 Lanczos vectors, k = 8) 40, 3 and none are wrong in float64, 40, 19 and one in float32."""
LANCZOS_EXTRA = 2
"""Products that ARPACK takes before its first basis is complete, beyond one for each vector."""
NYSTROM_FLOOR = 1e-2
"""Ritz values below this share of the largest are not inverted."""


class _BudgetSpentError(Exception):
    """Raised in the middle of ARPACK."""


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenpairs A u_i ≈ λ_i u_i.

    Attributes:
        values: λ, (k,), in the order asked for.
        vectors: u as columns, (D, k), orthonormal.
        residuals: ‖A u_i − λ_i u_i‖₂, (k,). For a symmetric A some true eigenvalue lies within it of λ_i.
        cost: operator products spent.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    cost: int


@full_precision
def eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    which: Which = "largest",
    tol: float | None = None,
    subspace: int | None = None,
    max_products: int = 20_000,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest (smallest, largest-in-magnitude) eigenpairs.

    By ARPACK's implicitly restarted Lanczos through SciPy; exactly by LAPACK for D ≤ 128 or k close to
    D, and from the operator's own structure where it knows its leading pairs. NaN where the operator's
    products are not finite.

    Copies of a repeated eigenvalue are in the Krylov space of one starting vector by rounding only, so that ARPACK
    may leave some out. Hence a few Lanczos steps from another vector, beside the pairs that were found, look for
    one that belongs among them; what they see is taken in, and they look again. With k = 1 a copy changes nothing.

    Args:
        operator: A.
        k: how many, at most D.
        which: ``"largest"`` (most positive first), ``"smallest"`` (most negative first), ``"magnitude"``.
        tol: relative accuracy of a Ritz value asked of ARPACK; 1e-3 in float32, 1e-9 in float64.
        subspace: Lanczos vectors kept by ARPACK, over k + 1; by default max(2k + 1, 20), and fewer where
            ``max_products`` does not allow as many.
        max_products: bound on the cost, the residuals' k products included.
        seed: of the starting vector.

    Raises:
        ValueError: k outside 1..D, an unknown ``which``, a ``max_products`` too small to begin with, or an
            operator of several replicas.
        TypeError: an operator whose dtype has no linear algebra.
        RuntimeError: no convergence within ``max_products``.

    >>> import torch
    >>> from noisescape.linops import DenseOperator
    >>> eigenpairs(DenseOperator(torch.diag(torch.tensor([1.0, 5.0, -7.0]))), 2).values
    tensor([5., 1.])
    """
    check_operand(operator)
    if which not in _ARPACK:
        raise InvalidValueError(f"which must be one of {sorted(_ARPACK)}, not {which!r}")
    check_whole("k", k, -sys.maxsize)
    check_whole("max_products", max_products)
    check_seed(seed)
    if tol is not None:
        check_real("tol", tol, 0)
    if not 1 <= k <= operator.size:
        raise InvalidValueError(f"k = {k} eigenpairs asked of {operator!r}; k must lie in 1..{operator.size}")
    if subspace is not None:
        check_whole("subspace", subspace)
        if subspace < k + 2:
            raise InvalidValueError(f"subspace = {subspace} must be at least k + 2 = {k + 2}")
    start = operator.products
    left = max_products - k  # the residuals take k
    if which == "largest" and left >= 0:
        known = operator.leading(k)
        if known is not None and len(known[0]) == k:
            return _with_residuals(operator, known[0], known[1], start)
    size, dense_fits = operator.size, operator.dense_products <= left
    small = size <= DENSE_BELOW or k > size // 3
    look = OVERLOOKED_STEPS if k > 1 else 0
    lanczos_vectors = min(size, subspace or max(2 * k + 1, DEFAULT_SUBSPACE), left - LANCZOS_EXTRA - look)
    if small and dense_fits:
        values, vectors = eigh_or_nan(operator.dense())
    elif k + 2 <= lanczos_vectors:
        tol = tol if tol is not None else 1e-9 if operator.dtype == torch.float64 else 1e-3
        search = _Search(operator, which, tol, lanczos_vectors, max_products, start + left)
        values, vectors = search.pairs(operator, k, seed)
        if look:
            values, vectors = search.with_overlooked(values, vectors, seed + 1)
    else:
        by_lanczos = [2 * k + 2 + LANCZOS_EXTRA + look] if k + 2 <= size else []
        least = min(by_lanczos + ([k + operator.dense_products] if small else []))
        raise InvalidValueError(
            f"max_products = {max_products} is too few for {k} eigenpairs of {operator!r}: allow at least {least}"
        )
    sort_key = values.abs() if which == "magnitude" else values
    order = torch.argsort(sort_key, descending=which != "smallest")[:k]
    return _with_residuals(operator, values[order], vectors[:, order], start)


def eigh_or_nan(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenpairs of symmetric matrices (..., D, D), NaN for those with an entry that is not finite.

    LAPACK refuses such a matrix, and the whole batch on its account.
    """
    finite = torch.isfinite(matrices).all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], matrices, 0.0))
    return (
        torch.where(finite[..., None], values, torch.nan),
        torch.where(finite[..., None, None], vectors, torch.nan),
    )


def largest_eigh(matrices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenpairs of symmetric matrices (..., D, D): values (..., k) decreasing, vectors (..., D, k).

    NaN for a matrix with an entry that is not finite. For one matrix on the CPU only those pairs are computed,
    by LAPACK through SciPy, which takes ordinary tensors only.
    """
    size = matrices.shape[-1]
    single = matrices.ndim == 2 and matrices.device.type == "cpu" and type(matrices) is Tensor
    if single and k < size and bool(torch.isfinite(matrices).all()):
        found = scipy.linalg.eigh(matrices.numpy(), subset_by_index=[size - k, size - 1])
        values, vectors = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    else:
        values, vectors = eigh_or_nan(matrices)
    return values[..., -k:].flip(-1), vectors[..., -k:].flip(-1)


def nystrom_pairs(basis: Tensor, image: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading eigenpairs of Y(UᵀY)⁺Yᵀ, the Nyström approximation of A from Y = AU; its positive part only.

    Args:
        basis: U, (D, m), orthonormal.
        image: Y, (D, m).
        k: at most m.

    Returns:
        Values (k,) decreasing and vectors (D, k), zero where UᵀAU has no clearly positive eigenvalue; and what
        U itself carries, the sum of the k leading eigenvalues of UᵀAU, ().
    """
    core = inner_products(basis.mT, image)
    inner, rotation = eigh_or_nan((core + core.mT) / 2)
    inner, rotation = inner.flip(-1), rotation.flip(-1)
    clear = inner > NYSTROM_FLOOR * inner.abs().amax()
    scale = torch.where(clear, inner.clamp_min(torch.finfo(inner.dtype).tiny).rsqrt(), 0.0)
    factor = image @ (rotation * scale)
    carried = torch.where(clear, inner, 0.0)[:k].sum()
    if not bool(torch.isfinite(factor).all()):
        return torch.full_like(inner[:k], torch.nan), torch.full_like(basis[:, :k], torch.nan), carried
    vectors, roots = left_singular(factor)
    return roots[:k].square(), torch.where(roots > 0, vectors, 0.0)[:, :k], carried


@dataclass(frozen=True)
class _Search:
    """ARPACK's search for extreme pairs of an operator, which ends when its count of products is ``last``."""

    operator: SymmetricOperator
    which: Which
    tol: float
    lanczos_vectors: int
    max_products: int
    last: int

    def pairs(self, operator: SymmetricOperator, k: int, seed: int) -> tuple[Tensor, Tensor]:
        """The k extreme pairs of the operator, or of one made of it."""
        start_vector = np.random.default_rng(seed).standard_normal(operator.size)
        like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        product = operator @ torch.from_numpy(start_vector).to(like)
        if not bool(torch.isfinite(product).all()):
            return like.new_full((k,), torch.nan), like.new_full((operator.size, k), torch.nan)
        if not bool(product.any()):  # ARPACK refuses the zero matrix
            return like.new_zeros(k), torch.eye(operator.size, k, dtype=operator.dtype, device=operator.device)
        scipy_operator = operator.to_scipy()

        def within_budget(vector: np.ndarray) -> np.ndarray:
            if self.operator.products >= self.last:
                raise _BudgetSpentError
            return scipy_operator.matvec(vector)

        try:
            values, vectors = eigsh(
                LinearOperator(scipy_operator.shape, matvec=within_budget, dtype=scipy_operator.dtype),
                k,
                which=_ARPACK[self.which],
                ncv=self.lanczos_vectors,
                tol=self.tol,
                v0=start_vector,
                maxiter=self.max_products,  # the products end it first
            )
        except (ArpackNoConvergence, _BudgetSpentError) as error:
            raise self._unfinished(k) from error
        return torch.from_numpy(values).to(like), torch.from_numpy(np.ascontiguousarray(vectors)).to(like)

    def with_overlooked(self, values: Tensor, vectors: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As many pairs, with those that were left out. A start of the same seed would leave them out again."""
        k = len(values)
        for attempt in range(seed, seed + k):
            if not bool(torch.isfinite(values).all()):
                break
            if self.operator.products + OVERLOOKED_STEPS > self.last:
                raise self._unfinished(k)
            ranks = self._rank(values)
            least = values[ranks.argmin()]
            rounding = 10 * max(self.tol, torch.finfo(values.dtype).eps) * least.abs()
            # where the found directions have the least of their values, or 0, another is the extreme one
            beside = self._beside(vectors, torch.zeros_like(least) if self.which == "magnitude" else least)
            if not self._seen(beside, vectors, attempt) > ranks.min() + rounding:
                break
            value, vector = self.pairs(beside, 1, attempt)
            vector = project_out(vectors, vector)
            vectors = torch.cat([vectors, vector / lengths(vector, dim=0)], dim=1)
            values = torch.cat([values, value])
            kept = self._rank(values).argsort(descending=True)[:k]
            values, vectors = values[kept], vectors[:, kept]
        return values, vectors

    def _rank(self, values: Tensor) -> Tensor:
        """Larger for those asked for first."""
        return {"largest": values, "smallest": -values, "magnitude": values.abs()}[self.which]

    def _beside(self, vectors: Tensor, shift: Tensor) -> SymmetricOperator:
        """A on the complement of the vectors, ``shift`` on their span."""

        def product(block: Tensor) -> Tensor:
            along = inner_products(vectors.mT, block)
            image = self.operator @ (block - vectors @ along)
            return image - vectors @ (inner_products(vectors.mT, image) - shift * along)

        like = self.operator
        return FunctionOperator(product, like.size, dtype=like.dtype, device=like.device, name=like.name)

    def _seen(self, beside: SymmetricOperator, vectors: Tensor, seed: int) -> Tensor:
        """The extreme Ritz value of a few Lanczos steps that begin in the complement of the vectors, as a rank."""
        like = beside
        generator = torch.Generator(like.device).manual_seed(seed)
        start = torch.randn(like.size, 1, generator=generator, dtype=like.dtype, device=like.device)
        start = project_out(vectors, start)
        steps = min(OVERLOOKED_STEPS, like.size - vectors.shape[1])
        nodes, weights = gauss_quadratures(beside, start / lengths(start, dim=0), steps)
        # nodes without weight belong to steps after the space was exhausted
        return self._rank(nodes[weights > torch.finfo(like.dtype).eps ** 2]).max()

    def _unfinished(self, k: int) -> FailedError:
        return FailedError(
            f"not all of {k} eigenpairs of {self.operator!r} converged to {self.tol:g} within "
            f"{self.max_products} products; ask for fewer, a looser tol or more products"
        )


def _with_residuals(operator: SymmetricOperator, values: Tensor, vectors: Tensor, start: int) -> Eigenpairs:
    residuals = lengths(operator @ vectors - values * vectors, dim=0)
    return Eigenpairs(values, vectors, residuals, operator.products - start)
