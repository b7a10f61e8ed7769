"""Probe until the error bar is narrow enough: the loop behind every randomised estimate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops.estimate import degrees_of_freedom, skewness
from noisescape.scalars import check_positive, check_seed, check_whole

FIRST_STAGE = 8
"""Probes of the pilot, and of the first that are averaged."""
BLOCK = 8
"""Columns multiplied at once."""
COLUMN_BYTES = 2**28
"""What a block of columns may take, by default."""


class ToleranceWarning(UserWarning):
    """The requested relative tolerance was not reached within the allowed products."""


@dataclass(frozen=True)
class ProbeMean:
    """The mean of iid probes, its standard error with degrees of freedom, and how many were averaged."""

    mean: Tensor
    stderr: Tensor
    probes: int
    dof: float


@dataclass(frozen=True)
class Exact:
    """The exact value of what probes estimate, and its price in probes."""

    value: Callable[[], Tensor]
    price: float

    def is_cheaper(self, planned: float, left: int) -> bool:
        """Whether it costs no more than the probes planned, nor than is left of the budget."""
        return self.price <= min(planned, left)


def mean_of_probes(
    draw: Callable[[int], Tensor],
    *,
    offset: Tensor,
    rtol: float,
    max_probes: int,
    what: str,
    exact: Exact | None = None,
    stacklevel: int = 3,
) -> ProbeMean:
    """Average iid probes until ‖stderr‖ ≤ rtol·‖offset + mean‖.

    Args:
        draw: m ↦ m iid probe values, (m, ...).
        offset: the part of the quantity known exactly; the tolerance is relative to the whole.
        rtol: requested relative standard error.
        max_probes: where to stop regardless, with a :class:`ToleranceWarning`.
        what: the quantity's name, for the warning.
        exact: what the probes are the mean of, taken where the pilot plans as many probes as that costs.
        stacklevel: of the warning, so that it points at the caller's line.

    In two stages, as Stein's: the spread of a pilot of 8 decides how many probes are averaged and gives the
    standard error; the average is over fresh probes alone. Their own spread decides nothing: for skewed probes it
    is correlated with the mean, and to stop where it happens to be small would bias the mean.

    Where the budget ends before the plan does, all probes left are averaged, and their own spread is used.

    Source: Stein (1945), A two-sample test for a linear hypothesis whose power is independent of the variance.
    """
    if max_probes <= 2 * FIRST_STAGE:
        return _all_that_is_left(draw(max_probes), None, offset, rtol, what, stacklevel)
    pilot = draw(FIRST_STAGE)
    spent = FIRST_STAGE
    count, spread = len(pilot), pilot.std(0)
    if float(torch.linalg.vector_norm(spread)) == 0:  # perhaps by chance: see whether others differ
        values = draw(FIRST_STAGE)
        spent += len(values)
        pilot, spread = torch.cat([pilot, values]), values.std(0)
    else:
        # the expected square error is (m − 1)/(m − 3) of the one that the spread gives
        margin = (count - 1) / max(count - 3, 1)
        planned = margin * _needed(spread, offset + pilot.mean(0), rtol)
        if exact is not None and exact.is_cheaper(planned, max_probes - spent):
            value = exact.value()
            return ProbeMean(value, torch.zeros_like(value), 0, math.inf)
        values = draw(_rounded(max(FIRST_STAGE, planned), max_probes - spent))
        spent += len(values)
    while True:
        mean = values.mean(0)
        stderr = spread / math.sqrt(len(values))
        error = float(torch.linalg.vector_norm(stderr))
        size = float(torch.linalg.vector_norm(offset + mean))
        if error <= rtol * size or not math.isfinite(error):
            return ProbeMean(
                mean, stderr, len(values), degrees_of_freedom(len(pilot), skewness(torch.cat([pilot, values])))
            )
        if spent >= max_probes:
            return _all_that_is_left(values, pilot, offset, rtol, what, stacklevel)
        wanted = min(_needed(spread, offset + mean, rtol), 8 * len(values))
        more = draw(_rounded(wanted - len(values), max_probes - spent))
        values = torch.cat([values, more])
        spent += len(more)


def _all_that_is_left(
    values: Tensor, pilot: Tensor | None, offset: Tensor, rtol: float, what: str, stacklevel: int
) -> ProbeMean:
    """The mean of all the probes there could be, with their own spread, which has decided nothing."""
    count, mean = len(values), values.mean(0)
    stderr = values.std(0) / math.sqrt(count)
    error = float(torch.linalg.vector_norm(stderr))
    size = float(torch.linalg.vector_norm(offset + mean))
    if error > rtol * size:
        warn_of_tolerance(what, error, size, count, rtol, stacklevel=stacklevel + 2)
    every = values if pilot is None else torch.cat([pilot, values])
    return ProbeMean(mean, stderr, count, degrees_of_freedom(count, skewness(every)))


def warn_of_tolerance(what: str, error: float, size: float, probes: int, rtol: float, *, stacklevel: int) -> None:
    """Warn that the budget ended before the tolerance was met."""
    reached = error / size if size else math.inf
    warnings.warn(
        f"{what}: relative standard error {reached:.2g} after {probes} probes, "
        f"{rtol:.2g} was asked for; allow more with max_products",
        ToleranceWarning,
        stacklevel=stacklevel,
    )


def _needed(spread: Tensor, whole: Tensor, rtol: float) -> float:
    """How many probes of this spread the tolerance takes, plus 10 %."""
    error = float(torch.linalg.vector_norm(spread))
    target = rtol * float(torch.linalg.vector_norm(whole))
    if error == 0 or not math.isfinite(error):
        return 0
    return 1.1 * (error / target) ** 2 if target > 0 else math.inf


def _rounded(count: float, limit: int) -> int:
    """Rounded up to whole blocks, but not over the limit."""
    return limit if count >= limit else min(limit, max(BLOCK, BLOCK * math.ceil(count / BLOCK)))


def check_tolerance(rtol: float, max_products: int, seed: int, deflate: int = 0, *, name: str = "rtol") -> None:
    """Refuse a tolerance, a budget, a seed or a number of deflated directions that makes no sense."""
    check_positive(name, rtol)
    if rtol > 1:
        raise InvalidValueError(f"{name} is a standard error as a share of the value, at most 1, not {rtol}")
    check_whole("max_products", max_products)
    check_seed(seed)
    check_whole("deflate", deflate, 0)
    if max_products < 2:
        raise InvalidValueError(
            f"max_products must allow at least 2 probes for a standard error, not {max_products}"
        )


def affordable(columns: int, price: int, max_products: int, *, per_probe: int = 1) -> int:
    """How many columns, at ``price`` products each, leave half of the budget and at least two probes."""
    return max(0, min(columns, max_products // 2 // price, (max_products - 2 * per_probe) // price))


def in_blocks(draw_block: Callable[[int], Tensor], block: int) -> Callable[[int], Tensor]:
    """As ``draw_block``, at most ``block`` columns at a time."""

    def draw(count: int) -> Tensor:
        sizes = [block] * (count // block) + ([count % block] if count % block else [])
        return torch.cat([draw_block(each) for each in sizes])

    return draw


def rademacher(size: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of independent signs, (size, count)."""
    signs = torch.randint(0, 2, (size, count), generator=generator, device=like.device, dtype=like.dtype)
    return signs.mul_(2).sub_(1)


def coordinates(size: int, like: Tensor, block: int) -> Iterator[Tensor]:
    """The columns of the D × D identity, at most ``block`` at a time."""
    for start in range(0, size, block):
        some = like.new_zeros(size, min(block, size - start))
        some[start : start + block].fill_diagonal_(1)
        yield some
