"""Tr(AB) of two operators: the indicator Tr(HΣ) and every alignment built from it."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.linops.estimate import Estimate
from noisescape.linops.operator import SymmetricOperator
from noisescape.linops.probing import (
    FIRST_STAGE,
    block_that_fits,
    check_tolerance,
    columns_that_fit,
    in_blocks,
    mean_of_probes,
    orthonormal,
    project_out,
    rademacher,
)


def product_trace(
    left: SymmetricOperator,
    right: SymmetricOperator,
    *,
    rtol: float = 0.01,
    deflate: int = 16,
    max_products: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Tr(AB), to a relative standard error.

    Let U be orthonormal, P = UUᵀ, Q = I − P. Then

        Tr(AB) = Tr(Uᵀ B A U) + Tr(Uᵀ B Q A U) + Tr(Q A Q B),

    the first two exact from AU and BU, the last by iid probes: E[(Qw)ᵀA(Qw)] over draws w ~ N(0, B) if B
    is a covariance, E[(AQz)ᵀ(BQz)] over signs z otherwise. U holds leading directions of B: from its
    structure where that gives them (a gradient covariance from the per-sample gradients it holds), a
    randomised range otherwise. The probes do not depend on U beyond conditioning, so the estimate is
    unbiased whatever U is; a good U only makes it cheap.

    Args:
        left: A, symmetric, possibly indefinite.
        right: B, symmetric. If only A is a covariance the two are exchanged.
        rtol: stop when stderr ≤ rtol·|value|.
        deflate: number of columns of U; fewer where D is so large that they would take over 256 MiB.
        max_products: bound on the cost.
        seed: of the probes.

    Returns:
        An :class:`Estimate`; exact (stderr 0) for small D and where B's rank is within ``deflate``.

    >>> import torch
    >>> from noisescape.linops import DenseOperator
    >>> A = DenseOperator(torch.tensor([[2.0, 1.0], [1.0, 0.0]]))
    >>> product_trace(A, A).value
    6.0
    """
    check_tolerance(rtol, max_products, deflate)
    if left.size != right.size:
        raise ValueError(f"cannot multiply {left!r} and {right!r}: sizes differ")
    if (left.dtype, left.device) != (right.dtype, right.device):
        raise ValueError(f"cannot multiply {left!r} and {right!r}: dtypes or devices differ")
    if left.psd and not right.psd:
        left, right = right, left

    deflate = columns_that_fit(left.size, left.dtype, deflate)
    basis = right.principal(deflate) if deflate else None
    exhausted = basis is not None and basis.shape[1] < deflate  # U spans B's range: nothing is left to probe
    if left.size <= 2 * (deflate + FIRST_STAGE) and not exhausted:
        exact = (left.dense() * right.dense()).sum()
        return Estimate(float(exact), 0.0, 2 * left.size)

    generator = torch.Generator(left.device).manual_seed(seed)
    like = torch.empty(0, dtype=left.dtype, device=left.device)
    if basis is not None:
        cost = basis.shape[1]
    else:
        basis = _range_of(right, deflate, like, generator)
        cost = 3 * deflate
    block = block_that_fits(left.size, left.dtype)
    carried = torch.zeros((), dtype=left.dtype, device=left.device)
    for start in range(0, basis.shape[1], block):
        columns = basis[:, start : start + block]
        turned = right @ columns
        carried += ((turned + project_out(basis, turned)) * (left @ columns)).sum()
    if exhausted:
        return Estimate(float(carried), 0.0, cost)

    by_sampling = right.psd and right.samples_cheaply

    def draw(count: int) -> Tensor:
        if by_sampling:
            probes = project_out(basis, right.sample(count, generator).T)
            return (probes * (left @ probes)).sum(0)
        probes = project_out(basis, rademacher(left.size, count, like, generator))
        return ((left @ probes) * project_out(basis, right @ probes)).sum(0)

    per_probe = 1 if by_sampling else 2
    rest = mean_of_probes(
        in_blocks(draw, block),
        offset=carried,
        rtol=rtol,
        max_probes=max(2, (max_products - cost) // per_probe),
        what=f"Tr({left.name}·{right.name})",
    )
    value = float(carried + rest.mean)
    return Estimate(value, float(rest.stderr), cost + per_probe * rest.spent, rest.dof)


def _range_of(operator: SymmetricOperator, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """An orthonormal basis of the images of random signs, (D, columns)."""
    if columns == 0:
        return like.new_empty(operator.size, 0)
    return orthonormal(operator @ rademacher(operator.size, columns, like, generator))
