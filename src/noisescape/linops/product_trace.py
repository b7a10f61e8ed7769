"""Tr(AB) of two operators: the indicator Tr(HΣ) and every alignment built from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops.control_variate import KEPT, MAIN_SHARE, PILOT, Gap
from noisescape.linops.estimate import Estimate
from noisescape.linops.operator import ProductCount, SymmetricOperator, check_operand
from noisescape.linops.paired_samples import by_pairs
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
def product_trace(
    left: SymmetricOperator,
    right: SymmetricOperator,
    *,
    control: SymmetricOperator | None = None,
    rtol: float = 0.01,
    deflate: int = 16,
    max_products: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Tr(AB), to a relative standard error.

    B is the operand held as a product of factors, as gradient covariances are, or else the one that is a covariance
    with cheap draws. The order in which they are given does not matter.

    A factored B is split into B = CCᵀ + RRᵀ with a few columns C that carry most of it, and

        Tr(AB) = Σ_i c_iᵀAc_i + E (Rz)ᵀA(Rz)

    over iid signs z: the first term exact, the second averaged.

    Otherwise let U be orthonormal, P = UUᵀ, Q = I − P. Then

        Tr(AB) = Tr(Uᵀ B A U) + Tr(Uᵀ B Q A U) + Tr(Q A Q B),

    the first two exact from AU and BU, the last by iid probes: E[(Qw)ᵀA(Qw)] over draws w ~ N(0, B) if B
    is a covariance, E[(AQz)ᵀ(BQz)] over signs z otherwise. U holds leading directions of B.

    The probes are independent of C and U, so the estimate is unbiased whatever these are; good ones make it cheap.

    Where A is a mean over N samples and B a covariance over as many, and single samples keep the processor busy,
    each column of B meets the matrices of a few samples instead of all, every sample as often as every other: the
    value is that of :class:`~noisescape.linops.paired_samples.Pairing`, where its first rounds say that they, or
    few more, are enough. Pairs that matter while neither of their samples does by itself may then be missed.

    With a control Ã, Tr(AB) = Tr(ÃB) + Tr((A − Ã)B): the first term as above, the second, the gap, by probes
    wᵀ(A − Ã)w with E wwᵀ = B. Two of them decide whether the gap is small enough for that to pay, and are set
    aside; the value comes from others. Where it does not pay, A is used throughout.

    Args:
        left: A or B, symmetric, possibly indefinite.
        right: the other one.
        control: Ã, close to A and with cheaper quadratic forms, as the Gauss–Newton matrix is to a Hessian. A
            bad one costs 4 to 8 products, no accuracy.
        rtol: stop when stderr ≤ rtol·|value|.
        deflate: number of columns of C or U; fewer where they would take over half of ``max_products``, and of U
            where D is so large that they would take over 256 MiB.
        max_products: bound on the cost: products with, or quadratic forms of, A, B and Ã together.
        seed: of the probes.

    Returns:
        An :class:`Estimate`; exact (stderr 0) where B's rank is within ``deflate``, and where that costs no more
        than the probes would.

    Raises:
        ValueError: operators that do not go together, a tolerance or a budget that makes no sense, several
            replicas, or a control where neither operand is factored or draws cheaply.
        TypeError: an operator whose dtype has no linear algebra.

    >>> import torch
    >>> from noisescape.linops import DenseOperator
    >>> A = DenseOperator(torch.tensor([[2.0, 1.0], [1.0, 0.0]]))
    >>> product_trace(A, A).value
    6.0
    """
    check_tolerance(rtol, max_products, seed, deflate)
    operators = [left, right] if control is None else [left, right, control]
    for operator in operators:
        check_operand(operator)
        if operator.size != left.size:
            raise InvalidValueError(f"cannot multiply {left!r} and {operator!r}: sizes differ")
        if (operator.dtype, operator.device) != (left.dtype, left.device):
            raise InvalidValueError(f"cannot multiply {left!r} and {operator!r}: dtypes or devices differ")
    left, right = sorted((left, right), key=_suitability)
    if control is not None and not (right.factored or _draws_cheaply(right)):
        raise InvalidValueError(
            f"a control needs draws of one operand, but {left!r} and {right!r} are neither held as factors nor "
            "covariances with a cheap sample(); leave control out"
        )
    count = ProductCount(*operators)
    generator = torch.Generator(left.device).manual_seed(seed)
    found = by_pairs(left, right, rtol, max_products, generator)
    if found is None:
        prepare = _by_factors if right.factored else _by_directions
        way = prepare(left, right, deflate, max_products - count.spent, generator)
        if way is None:
            found = Estimate(float((left.dense() * right.dense()).sum()), 0.0)
        else:
            found = _along(way, left, control, rtol, max_products, count, f"Tr({left.name}·{right.name})")
    return replace(found, cost=count.spent)


@dataclass(frozen=True)
class _Way:
    """Tr(AB) = carried(A) + E probe(A) for one B and any A.

    Attributes:
        carried: the part known exactly, ().
        probe: m probes of the rest, (m,).
        per_probe: products per probe.
        price: products that ``carried`` takes.
        exhausted: whether there is no rest.
        draw: m ↦ columns w with E wwᵀ = B, (D, m), where those are cheap.
        right: B.
    """

    carried: Callable[[SymmetricOperator], Tensor]
    probe: Callable[[SymmetricOperator, int], Tensor]
    per_probe: int
    price: int
    exhausted: bool
    draw: Callable[[int], Tensor] | None
    right: SymmetricOperator

    def rest(self, left: SymmetricOperator, carried: Tensor) -> Exact:
        """The mean of the probes, exactly: over all coordinates, less ``carried``, the part known already."""

        def value() -> Tensor:
            like = torch.empty(0, dtype=left.dtype, device=left.device)
            blocks = coordinates(left.size, like, min(left.block, self.right.block))
            whole = torch.stack([((left @ some) * (self.right @ some)).sum() for some in blocks]).sum()
            return whole - carried

        return Exact(value, 2 * left.size / self.per_probe)


def _along(
    way: _Way,
    operator: SymmetricOperator,
    control: SymmetricOperator | None,
    rtol: float,
    max_products: int,
    count: ProductCount,
    what: str,
) -> Estimate:
    """Tr(AB), with the control where that pays."""

    def estimate(each: SymmetricOperator, rtol: float, offset: Tensor | float = 0.0) -> Estimate:
        carried = way.carried(each)
        known = carried + offset
        if way.exhausted:
            return Estimate(float(known), 0.0)
        rest = mean_of_probes(
            in_blocks(lambda number: way.probe(each, number), min(each.block, operator.block)),
            offset=known,
            rtol=rtol,
            max_probes=(max_products - count.spent) // way.per_probe,
            what=what,
            exact=way.rest(each, carried),
            stacklevel=6,
        )
        return Estimate(float(known + rest.mean), float(rest.stderr), 0, rest.dof)

    pays = max_products >= way.price + 2 * (PILOT + KEPT + FIRST_STAGE)
    if control is None or way.draw is None or way.exhausted or not pays:
        return estimate(operator, rtol)
    gap = Gap(operator, control, way.draw)
    if not gap.is_small(rtol):
        return estimate(operator, rtol)
    main = estimate(control, MAIN_SHARE * rtol, gap.mean)
    return gap.added(main, rtol, left=lambda: max_products - count.spent, what=what)


def _by_factors(
    left: SymmetricOperator, right: SymmetricOperator, deflate: int, max_products: int, generator: torch.Generator
) -> _Way | None:
    """By B = CCᵀ + RRᵀ; None where dense matrices are cheaper."""
    parts = right.split(min(deflate, max_products))
    if parts is None:
        raise InvalidValueError(f"{right!r} says that it is held as factors, but its split() returns None")
    if not parts.exhausted:
        if _dense_is_cheap(left, right, deflate, max_products):
            return None
        parts = replace(parts, carried=parts.carried[:, : affordable(deflate, 1, max_products)])
    width, columns = parts.carried.shape
    block = min(left.block, right.block)

    def signs(count: int) -> Tensor:
        return rademacher(width, count, parts.carried, generator)

    def carried(operator: SymmetricOperator) -> Tensor:
        total = parts.carried.new_zeros(())
        for start in range(0, columns, block):
            total += operator.quadratic_forms(parts.columns(slice(start, start + block))).sum()
        return total

    return _Way(
        carried=carried,
        probe=lambda operator, count: operator.quadratic_forms(parts.rest(signs(count))),
        per_probe=1,
        price=columns,
        exhausted=parts.exhausted,
        draw=lambda count: parts.factor(signs(count)),
        right=right,
    )


def _by_directions(
    left: SymmetricOperator, right: SymmetricOperator, deflate: int, max_products: int, generator: torch.Generator
) -> _Way | None:
    """By leading directions U of B and what is outside them; None where dense matrices are cheaper."""
    by_draws = _draws_cheaply(right)
    per_probe = 1 if by_draws else 2
    like = torch.empty(0, dtype=left.dtype, device=left.device)
    wanted = left.columns_that_fit(right.columns_that_fit(deflate))
    affords = min(wanted, max_products // 2)
    basis = right.principal(affords) if affords else None
    exhausted = basis is not None and basis.shape[1] < affords  # U spans B's range: nothing is left to probe
    price = 3 if basis is None else 2
    if not exhausted:
        if _dense_is_cheap(left, right, deflate, max_products):
            return None
        if max_products < 2 * per_probe:
            raise InvalidValueError(
                f"max_products = {max_products} is too few for a standard error of Tr({left.name}·{right.name}), "
                f"which takes two probes of {per_probe} products: allow at least {2 * per_probe}"
            )
        columns = affordable(wanted, price, max_products, per_probe=per_probe)
        basis = _range_of(right, columns, like, generator) if basis is None else basis[:, :columns]
    directions = like.new_empty(left.size, 0) if basis is None else basis
    block = min(left.block, right.block)

    def draw(count: int) -> Tensor:
        return right.sample(count, generator).T

    def carried(operator: SymmetricOperator) -> Tensor:
        total = like.new_zeros(())
        for some in directions.split(block, dim=1):
            image = right @ some
            total += ((image + project_out(directions, image)) * (operator @ some)).sum()
        return total

    def probe(operator: SymmetricOperator, count: int) -> Tensor:
        if by_draws:
            return operator.quadratic_forms(project_out(directions, draw(count)))
        probes = project_out(directions, rademacher(left.size, count, like, generator))
        return ((operator @ probes) * project_out(directions, right @ probes)).sum(0)

    return _Way(
        carried=carried,
        probe=probe,
        per_probe=per_probe,
        price=price * directions.shape[1],
        exhausted=exhausted,
        draw=draw if by_draws else None,
        right=right,
    )


def _suitability(operator: SymmetricOperator) -> tuple[bool, bool, bool, str]:
    """How suited an operand is to be B; the name decides between equals, so that the order given does not."""
    return operator.factored, _draws_cheaply(operator), operator.psd, operator.name


def _draws_cheaply(operator: SymmetricOperator) -> bool:
    return operator.psd and operator.samples_cheaply


def _dense_is_cheap(left: SymmetricOperator, right: SymmetricOperator, deflate: int, max_products: int) -> bool:
    """Whether both whole matrices take few more products than the first probes would."""
    dense_products = left.dense_products + right.dense_products
    return left.size <= 2 * (deflate + FIRST_STAGE) and dense_products <= max_products


def _range_of(operator: SymmetricOperator, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """An orthonormal basis of the images of random signs, (D, columns)."""
    if columns == 0:
        return like.new_empty(operator.size, 0)
    return orthonormal(operator @ rademacher(operator.size, columns, like, generator))
