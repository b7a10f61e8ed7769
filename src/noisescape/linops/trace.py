"""Trace and diagonal of an operator, with standard errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops.estimate import Estimate, VectorEstimate
from noisescape.linops.operator import ProductCount, SymmetricOperator, check_operand
from noisescape.linops.precision import full_precision
from noisescape.linops.probing import (
    FIRST_STAGE,
    Exact,
    affordable,
    check_tolerance,
    coordinates,
    in_blocks,
    mean_of_probes,
    rademacher,
)
from noisescape.linops.tall import orthonormal, project_out


@full_precision
def trace(
    operator: SymmetricOperator,
    *,
    rtol: float = 0.01,
    deflate: int | Tensor = 10,
    max_products: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Tr A, to a relative standard error.

    Tr A = Tr UᵀAU + E[zᵀ(I−UUᵀ)A(I−UUᵀ)z] for any orthonormal U: the first term is exact, the
    second is averaged over Rademacher probes z that U does not depend on. A good U carries most of the
    trace of a matrix with few large eigenvalues, as Hessians have.

    Args:
        operator: A.
        rtol: stop when stderr ≤ rtol·|value|. A trace near zero by cancellation cannot reach any.
        deflate: number of columns of U, found by one randomised range-finding pass; or U itself,
            (D, K) with orthonormal columns, such as eigenvectors. Fewer where they would take over half of
            ``max_products``.
        max_products: bound on the cost.
        seed: of the probes.

    Returns:
        An :class:`Estimate`; exact (stderr 0) where D products cost no more than the probes would.

    Raises:
        ValueError: a tolerance or a budget that makes no sense, or an operator of several replicas.
        TypeError: an operator whose dtype has no linear algebra.

    Source: Hutchinson (1989); deflation as in Hutch++, Meyer, Musco, Musco & Woodruff (2021).

    >>> import torch
    >>> from noisescape.linops import DenseOperator
    >>> trace(DenseOperator(torch.diag(torch.tensor([3.0, 2.0, 1.0])))).value
    6.0
    """
    check_tolerance(rtol, max_products, seed, _columns(deflate))
    return _ProbedSums(operator, [_quadratic_forms], deflate, max_products, seed).estimate(0, rtol, "trace")


@full_precision
def squared_norm(
    operator: SymmetricOperator,
    *,
    rtol: float = 0.01,
    deflate: int | Tensor = 10,
    max_products: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """‖A‖²_F = Tr A², to a relative standard error.

    ‖AU‖²_F + E‖A(I−UUᵀ)z‖² over Rademacher z; arguments as for :func:`trace`.
    """
    check_tolerance(rtol, max_products, seed, _columns(deflate))
    return _ProbedSums(operator, [_squared_lengths], deflate, max_products, seed).estimate(0, rtol, "squared norm")


@full_precision
def trace_and_squared_norm(
    operator: SymmetricOperator,
    *,
    rtol: float = 0.01,
    norm_rtol: float = 0.01,
    deflate: int | Tensor = 10,
    max_products: int = 10_000,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Tr A and ‖A‖²_F from the same probes: each product gives a term of both.

    Each is unbiased and to a tolerance of its own, as by :func:`trace` and :func:`squared_norm`; they are not
    independent of each other. The cost of each is what both took. Arguments and errors as for those.
    """
    check_tolerance(rtol, max_products, seed, _columns(deflate))
    check_tolerance(norm_rtol, max_products, seed, _columns(deflate), name="norm_rtol")
    sums = _ProbedSums(operator, [_quadratic_forms, _squared_lengths], deflate, max_products, seed)
    found = sums.estimate(0, rtol, "trace"), sums.estimate(1, norm_rtol, "squared norm")
    return replace(found[0], cost=sums.cost), replace(found[1], cost=sums.cost)


def _quadratic_forms(vectors: Tensor, products: Tensor) -> Tensor:
    """vᵀAv of each column."""
    return (vectors * products).sum(0)


def _squared_lengths(_vectors: Tensor, products: Tensor) -> Tensor:
    """‖Av‖² of each column."""
    return products.square().sum(0)


def _columns(deflate: int | Tensor) -> int:
    if not isinstance(deflate, Tensor):
        return deflate
    if deflate.ndim != 2:
        raise InvalidValueError(f"deflate must be columns (D, K), not of shape {tuple(deflate.shape)}")
    return deflate.shape[1]


class _ProbedSums:
    """Sums of form(v, Av) over any orthonormal basis, for several forms: exact on U, by sign probes off it.

    What one form's estimate has drawn, the others' take before they draw more: a probe is multiplied by A once.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        forms: Sequence[Callable[[Tensor, Tensor], Tensor]],
        deflate: int | Tensor,
        max_products: int,
        seed: int,
    ) -> None:
        check_operand(operator)
        if isinstance(deflate, Tensor) and deflate.shape[0] != operator.size:
            raise InvalidValueError(
                f"deflate must be columns (D, K) with D = {operator.size}, not of shape {tuple(deflate.shape)}"
            )
        self._operator = operator
        self._forms = forms
        self._most = max_products
        self._count = ProductCount(operator)
        self._like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        self._generator = torch.Generator(operator.device).manual_seed(seed)
        self._drawn: list[Tensor] = []
        columns = _columns(deflate)
        if operator.size <= min(2 * (columns + FIRST_STAGE), max_products):  # the whole of it
            blocks = coordinates(operator.size, self._like, operator.block)
            self._basis: Tensor | None = None
            self._carried = torch.stack([self._of(some) for some in blocks]).sum(0)
            return
        if isinstance(deflate, Tensor):
            self._basis = deflate[:, : affordable(columns, 1, max_products)]
        else:  # one randomised range-finding pass
            self._basis = orthonormal(operator @ self._signs(affordable(columns, 2, max_products)))
        self._carried = self._of(self._basis)

    @property
    def cost(self) -> int:
        """Products so far."""
        return self._count.spent

    def estimate(self, number: int, rtol: float, what: str) -> Estimate:
        """The sum of one of the forms."""
        carried = self._carried[number]
        if self._basis is None:
            return Estimate(float(carried), 0.0, self.cost)
        if "_off_basis" in self.__dict__:  # another form's exact value cost this one's
            return Estimate(float(carried + self._off_basis[number]), 0.0, self.cost)
        taken = 0

        def draw(count: int) -> Tensor:
            nonlocal taken
            while self._have < taken + count:
                self._drawn.append(self._probed(min(self._operator.block, taken + count - self._have)))
            taken += count
            return torch.cat(self._drawn)[taken - count : taken, number]

        rest = mean_of_probes(
            draw,
            offset=carried,
            rtol=rtol,
            max_probes=self._have + self._most - self.cost,
            what=f"{what} of {self._operator.name}",
            exact=Exact(lambda: self._off_basis[number], self._operator.size),
            stacklevel=5,
        )
        return Estimate(float(carried + rest.mean), float(rest.stderr), self.cost, rest.dof)

    @property
    def _have(self) -> int:
        return sum(len(values) for values in self._drawn)

    def _probed(self, count: int) -> Tensor:
        """All forms of so many probes off U, (m, forms)."""
        assert self._basis is not None
        probes = project_out(self._basis, self._signs(count))
        image = self._operator @ probes
        return torch.stack([form(probes, image) for form in self._forms], dim=1)

    @functools.cached_property
    def _off_basis(self) -> Tensor:
        """The sums over all of (I − UUᵀ)e_i, which are those over a basis of what is outside U."""
        assert self._basis is not None
        blocks = coordinates(self._operator.size, self._like, self._operator.block)
        return torch.stack([self._of(project_out(self._basis, some)) for some in blocks]).sum(0)

    def _of(self, columns: Tensor) -> Tensor:
        """The sums over some columns, (forms,)."""
        image = self._operator @ columns
        return torch.stack([form(columns, image).sum() for form in self._forms])

    def _signs(self, count: int) -> Tensor:
        return rademacher(self._operator.size, count, self._like, self._generator)


@full_precision
def diagonal(
    operator: SymmetricOperator, *, rtol: float = 0.1, max_products: int = 10_000, seed: int = 0
) -> VectorEstimate:
    """diag A, (D,), each entry with a standard error.

    diag A = E[z ⊙ Az] over Rademacher z; entry i has variance Σ_{j≠i} A_ij² per probe. The tolerance is
    on the vector: ‖stderr‖₂ ≤ rtol·‖diag‖₂.

    For operators that know their diagonal, as covariances do, ``operator.diagonal()`` is exact and cheap.

    Arguments and errors as for :func:`trace`.

    Source: Bekas, Kokiopoulou & Saad (2007).
    """
    check_operand(operator)
    check_tolerance(rtol, max_products, seed)
    count = ProductCount(operator)

    def entries() -> Tensor:
        return torch.cat(
            [(some * (operator @ some)).sum(0) for some in coordinates(operator.size, like, operator.block)]
        )

    if operator.size <= 2 * FIRST_STAGE and operator.dense_products <= max_products:
        exact = operator.dense().diagonal().clone()
        return VectorEstimate(exact, torch.zeros_like(exact), count.spent)

    generator = torch.Generator(operator.device).manual_seed(seed)
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)

    def draw(count: int) -> Tensor:
        probes = rademacher(operator.size, count, like, generator)
        return (probes * (operator @ probes)).T

    found = mean_of_probes(
        in_blocks(draw, operator.block),
        offset=torch.zeros((), dtype=operator.dtype, device=operator.device),
        rtol=rtol,
        max_probes=max_products,
        what=f"diagonal of {operator.name}",
        exact=Exact(entries, operator.size),
        stacklevel=4,
    )
    return VectorEstimate(found.mean, found.stderr, count.spent, found.dof)
