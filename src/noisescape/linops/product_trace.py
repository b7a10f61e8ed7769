"""Tr(AB) of two operators: the indicator Tr(HΣ) and every alignment built from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisescape.linops.estimate import Estimate
from noisescape.linops.operator import Split, SymmetricOperator
from noisescape.linops.probing import (
    FIRST_STAGE,
    check_tolerance,
    in_blocks,
    mean_of_probes,
    orthonormal,
    project_out,
    rademacher,
)

GAPS = 4
"""Probes of the difference between an operator and its surrogate."""
GAP_SHARE = 1 / 8
"""A surrogate is used where those probes' standard error is below this share of the tolerance. The total they are
compared with is itself known to a third or so from 4 probes; whence a margin of 2 to what MAIN_SHARE leaves."""
MAIN_SHARE = math.sqrt(1 - (2 * GAP_SHARE) ** 2)


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

    Where B is held as a product of factors, as gradient covariances are, it is split into B = CCᵀ + RRᵀ with
    a few columns C that carry most of it, and

        Tr(AB) = Σ_i c_iᵀAc_i + E (Rz)ᵀA(Rz)

    over iid signs z: the first part exact, the second averaged. A may have a surrogate Ã with cheaper quadratic
    forms, as a Hessian has in its Gauss–Newton matrix. Then Tr(AB) = Tr(ÃB) + Tr((A − Ã)B), and if 4 draws
    w ~ N(0, B) show that wᵀ(A − Ã)w hardly varies, these 4 are the second term and the first is found as above;
    if not, they are set aside.

    Otherwise let U be orthonormal, P = UUᵀ, Q = I − P. Then

        Tr(AB) = Tr(Uᵀ B A U) + Tr(Uᵀ B Q A U) + Tr(Q A Q B),

    the first two exact from AU and BU, the last by iid probes: E[(Qw)ᵀA(Qw)] over draws w ~ N(0, B) if B
    is a covariance, E[(AQz)ᵀ(BQz)] over signs z otherwise. U holds leading directions of B.

    The probes do not depend on C or U beyond conditioning, so the estimate is unbiased whatever these are; good
    ones only make it cheap.

    Args:
        left: A, symmetric, possibly indefinite.
        right: B, symmetric. If only A is a covariance the two are exchanged.
        rtol: stop when stderr ≤ rtol·|value|.
        deflate: number of columns of C or U; of U fewer where D is so large that they would take over 256 MiB.
        max_products: bound on the cost: products with A, or quadratic forms of it or its surrogate.
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

    generator = torch.Generator(left.device).manual_seed(seed)
    if left.size > 2 * (deflate + FIRST_STAGE) and (parts := right.split(deflate)) is not None:
        return _over_parts(left, right, parts, rtol=rtol, max_products=max_products, generator=generator)
    deflate = left.columns_that_fit(right.columns_that_fit(deflate))
    basis = right.principal(deflate) if deflate else None
    exhausted = basis is not None and basis.shape[1] < deflate  # U spans B's range: nothing is left to probe
    if left.size <= 2 * (deflate + FIRST_STAGE) and not exhausted:
        exact = (left.dense() * right.dense()).sum()
        return Estimate(float(exact), 0.0, 2 * left.size)

    like = torch.empty(0, dtype=left.dtype, device=left.device)
    if basis is not None:
        cost = basis.shape[1]
    else:
        basis = _range_of(right, deflate, like, generator)
        cost = 3 * deflate
    block = min(left.block, right.block)
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


def _over_parts(
    left: SymmetricOperator,
    right: SymmetricOperator,
    parts: Split,
    *,
    rtol: float,
    max_products: int,
    generator: torch.Generator,
) -> Estimate:
    """Tr(AB) for B = CCᵀ + RRᵀ, through A's surrogate where that is close enough."""
    what = f"Tr({left.name}·{right.name})"
    block = min(left.block, right.block)
    surrogate = left.surrogate()
    spent = 0
    if surrogate is not None and max_products >= parts.carried.shape[1] + 2 * (GAPS + FIRST_STAGE):

        def forms_and_gaps(count: int) -> Tensor:
            probes = right.sample(count, generator).T
            forms = left.quadratic_forms(probes)
            return torch.stack([forms, forms - surrogate.quadratic_forms(probes)], dim=1)

        drawn = in_blocks(forms_and_gaps, block)(GAPS)
        spent = 2 * GAPS
        whole, gap = drawn.mean(0)
        stderr = drawn[:, 1].std() / math.sqrt(GAPS)
        if bool(stderr <= GAP_SHARE * rtol * whole.abs()):
            main = _sum_of_forms(surrogate, parts, block, MAIN_SHARE * rtol, max_products - spent, generator, what)
            return _sum(main, Estimate(float(gap), float(stderr), spent, GAPS - 1))
    direct = _sum_of_forms(left, parts, block, rtol, max_products - spent, generator, what)
    return Estimate(direct.value, direct.stderr, direct.cost + spent, direct.dof)


def _sum_of_forms(
    operator: SymmetricOperator,
    parts: Split,
    block: int,
    rtol: float,
    max_products: int,
    generator: torch.Generator,
    what: str,
) -> Estimate:
    """Σ_i c_iᵀAc_i + E (Rz)ᵀA(Rz), so many columns at a time."""
    width, cost = parts.carried.shape
    carried = parts.carried.new_zeros(())
    for start in range(0, cost, block):
        carried += operator.quadratic_forms(parts.columns(slice(start, start + block))).sum()
    if parts.exhausted:
        return Estimate(float(carried), 0.0, cost)

    def draw(count: int) -> Tensor:
        return operator.quadratic_forms(parts.rest(rademacher(width, count, parts.carried, generator)))

    found = mean_of_probes(
        in_blocks(draw, block),
        offset=carried,
        rtol=rtol,
        max_probes=max(2, max_products - cost),
        what=what,
        stacklevel=5,
    )
    return Estimate(float(carried + found.mean), float(found.stderr), cost + found.spent, found.dof)


def _sum(main: Estimate, gap: Estimate) -> Estimate:
    """Of two independent estimates, with Welch's degrees of freedom."""
    stderr = math.hypot(main.stderr, gap.stderr)
    shares = (main.stderr**4 / main.dof + gap.stderr**4 / gap.dof) if stderr else 0.0
    return Estimate(
        main.value + gap.value, stderr, main.cost + gap.cost, stderr**4 / shares if shares else math.inf
    )


def _range_of(operator: SymmetricOperator, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """An orthonormal basis of the images of random signs, (D, columns)."""
    if columns == 0:
        return like.new_empty(operator.size, 0)
    return orthonormal(operator @ rademacher(operator.size, columns, like, generator))
