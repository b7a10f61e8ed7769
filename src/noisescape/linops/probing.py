"""Probe until the error bar is narrow enough: the loop behind every randomised estimate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_STAGE = 8
BLOCK = 8
COLUMN_BYTES = 2**28
PILOT_MARGIN = 1.5
"""A pilot's spread is uncertain: so many times more probes than it asks for, rather than a second round."""


class ToleranceWarning(UserWarning):
    """The requested relative tolerance was not reached within the allowed products."""


@dataclass(frozen=True)
class ProbeMean:
    """Mean of iid probes, its standard error with degrees of freedom, their number, and that of all drawn."""

    mean: Tensor
    stderr: Tensor
    probes: int
    spent: int
    dof: float


def mean_of_probes(
    draw: Callable[[int], Tensor], *, offset: Tensor, rtol: float, max_probes: int, what: str, stacklevel: int = 3
) -> ProbeMean:
    """Average iid probes until ‖stderr‖ ≤ rtol·‖offset + mean‖.

    Args:
        draw: m ↦ m iid probe values, (m, ...).
        offset: the part of the quantity known exactly; the tolerance is relative to the whole.
        rtol: requested relative standard error.
        max_probes: where to stop regardless, with a :class:`ToleranceWarning`.
        what: the quantity's name, for the warning.
        stacklevel: of the warning, so that it points at the caller's line.

    A pilot of 8 probes estimates the spread and decides how many are needed. It is then set aside: were it
    part of the mean, stopping where the spread happens to be small would bias the mean, as the two are
    correlated for skewed probes. (Where the budget is too small for a pilot, all of it is spent at once.) Only the
    probes' skewness, which the degrees of freedom allow for, is read off all of them.
    """
    if max_probes <= 2 * FIRST_STAGE:
        values, spent = draw(max_probes), max_probes
        pilot = values[:0]
    else:
        pilot = draw(FIRST_STAGE)
        spent = FIRST_STAGE
        needed = PILOT_MARGIN * _needed(pilot, offset, rtol)
        values = draw(_rounded(max(FIRST_STAGE, needed), max_probes - spent))
        spent += len(values)
    while True:
        count = len(values)
        mean = values.mean(0)
        stderr = values.std(0) / math.sqrt(count)
        error = float(torch.linalg.vector_norm(stderr))
        size = float(torch.linalg.vector_norm(offset + mean))
        if error <= rtol * size or not math.isfinite(error):
            return ProbeMean(mean, stderr, count, spent, _dof(values, pilot))
        if spent >= max_probes:
            warn_of_tolerance(what, error, size, count, rtol, stacklevel=stacklevel + 1)
            return ProbeMean(mean, stderr, count, spent, _dof(values, pilot))
        more = draw(_rounded(min(_needed(values, offset, rtol), 8 * count) - count, max_probes - spent))
        values = torch.cat([values, more])
        spent += len(more)


def warn_of_tolerance(what: str, error: float, size: float, probes: int, rtol: float, *, stacklevel: int) -> None:
    """Say that the budget ended before the tolerance was met."""
    reached = error / size if size else math.inf
    warnings.warn(
        f"{what}: relative standard error {reached:.2g} after {probes} probes, "
        f"{rtol:.2g} was asked for; allow more with max_products",
        ToleranceWarning,
        stacklevel=stacklevel,
    )


def _needed(values: Tensor, offset: Tensor, rtol: float) -> float:
    """How many probes of this spread the tolerance takes, and 10 % over."""
    error = float(torch.linalg.vector_norm(values.std(0)))
    target = rtol * float(torch.linalg.vector_norm(offset + values.mean(0)))
    if error == 0 or not math.isfinite(error):
        return 0
    return 1.1 * (error / target) ** 2 if target > 0 else math.inf


def _dof(values: Tensor, pilot: Tensor) -> float:
    """Degrees of freedom of the spread of probes: n − 1 for normal ones, fewer for skewed ones.

    The variance s² of n probes has the relative variance κ/n + 2/(n − 1), whence 2/(κ/n + 2/(n − 1)) by matching
    that of a χ². The excess κ is put at 3γ²/2, its value for a gamma law, which sums of squares are near, as the
    skewness γ is what few probes tell more surely. Vectors of probes, and three or fewer, are taken for normal.

    Source: Satterthwaite (1946); for the variance of s², Cramér (1946), §27.4.
    """
    count = len(values)
    probes = torch.cat([pilot, values]).double()
    deviations = probes - probes.mean(0)
    spread = float(deviations.square().mean()) if probes.ndim == 1 else 0.0
    if len(probes) <= 3 or not 0 < spread < math.inf:
        return count - 1
    number = len(probes)
    skewness = float(deviations.pow(3).mean()) / spread**1.5 * math.sqrt(number * (number - 1)) / (number - 2)
    return 2 / (1.5 * skewness**2 / count + 2 / (count - 1))


def _rounded(count: float, limit: int) -> int:
    """Up to whole blocks, but not over the limit."""
    return limit if count >= limit else min(limit, max(BLOCK, BLOCK * math.ceil(count / BLOCK)))


def check_tolerance(rtol: float, max_products: int, deflate: int = 0) -> None:
    """Refuse a tolerance, a budget or a number of deflated directions that makes no sense."""
    if deflate < 0:
        raise ValueError(f"deflate counts directions and cannot be {deflate}")
    if not 0 < rtol < math.inf:
        raise ValueError(f"rtol is a relative standard error and must be positive, not {rtol}")
    if max_products < 2:
        raise ValueError(f"max_products must allow at least 2 probes for a standard error, not {max_products}")


def affordable(columns: int, price: int, max_products: int, *, per_probe: int = 1) -> int:
    """How many of the columns wanted, at so many products each, leave half of a budget and two probes."""
    return max(0, min(columns, max_products // 2 // price, (max_products - 2 * per_probe) // price))


def in_blocks(draw_block: Callable[[int], Tensor], block: int) -> Callable[[int], Tensor]:
    """Draw so many columns at a time."""

    def draw(count: int) -> Tensor:
        sizes = [block] * (count // block) + ([count % block] if count % block else [])
        return torch.cat([draw_block(each) for each in sizes])

    return draw


def rademacher(size: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of independent signs, (size, count)."""
    signs = torch.randint(0, 2, (size, count), generator=generator, device=like.device, dtype=like.dtype)
    return signs.mul_(2).sub_(1)


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span, (D, K)."""
    return torch.linalg.qr(columns).Q


def project_out(basis: Tensor, columns: Tensor) -> Tensor:
    """(I − U Uᵀ) X for an orthonormal U."""
    return columns - basis @ (basis.T @ columns)
