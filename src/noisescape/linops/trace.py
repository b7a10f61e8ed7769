"""Trace and diagonal of an operator, with standard errors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
    orthonormal,
    project_out,
    rademacher,
)


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
    return _deflated_sum(operator, _quadratic_forms, "trace", rtol, deflate, max_products, seed)


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
    return _deflated_sum(operator, _squared_lengths, "squared norm", rtol, deflate, max_products, seed)


def _quadratic_forms(vectors: Tensor, products: Tensor) -> Tensor:
    """vᵀAv of each column."""
    return (vectors * products).sum(0)


def _squared_lengths(_vectors: Tensor, products: Tensor) -> Tensor:
    """‖Av‖² of each column."""
    return products.square().sum(0)


def _deflated_sum(
    operator: SymmetricOperator,
    form: Callable[[Tensor, Tensor], Tensor],
    what: str,
    rtol: float,
    deflate: int | Tensor,
    max_products: int,
    seed: int,
) -> Estimate:
    """The sum of form(v, Av) over any orthonormal basis: exact on U, by sign probes off it."""
    check_operand(operator)
    columns = deflate if isinstance(deflate, int) else deflate.shape[1]
    check_tolerance(rtol, max_products, columns)
    count = ProductCount(operator)
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    if operator.size <= min(2 * (columns + FIRST_STAGE), max_products):
        whole = sum(
            float(form(some, operator @ some).sum()) for some in coordinates(operator.size, like, operator.block)
        )
        return Estimate(whole, 0.0, count.spent)

    generator = torch.Generator(operator.device).manual_seed(seed)
    if isinstance(deflate, Tensor):
        basis = deflate[:, : affordable(columns, 1, max_products)]
    else:  # one randomised range-finding pass
        columns = affordable(columns, 2, max_products)
        basis = orthonormal(operator @ rademacher(operator.size, columns, like, generator))
    carried = form(basis, operator @ basis).sum()

    def draw(count: int) -> Tensor:
        probes = project_out(basis, rademacher(operator.size, count, like, generator))
        return form(probes, operator @ probes)

    def off_basis() -> Tensor:
        """The sum over all of (I − UUᵀ)e_i, which is that over a basis of what is outside U."""
        outside = (project_out(basis, some) for some in coordinates(operator.size, like, operator.block))
        return torch.stack([form(some, operator @ some).sum() for some in outside]).sum()

    rest = mean_of_probes(
        in_blocks(draw, operator.block),
        offset=carried,
        rtol=rtol,
        max_probes=max_products - count.spent,
        what=f"{what} of {operator.name}",
        exact=Exact(off_basis, operator.size),
        stacklevel=5,
    )
    return Estimate(float(carried + rest.mean), float(rest.stderr), count.spent, rest.dof)


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
    check_tolerance(rtol, max_products)
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
