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
    """Mean of iid probes, its standard error, how many there were, and how many were spent in all."""

    mean: Tensor
    stderr: Tensor
    probes: int
    spent: int

    @property
    def dof(self) -> float:
        """Degrees of freedom of ``stderr``."""
        return self.probes - 1


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
    correlated for skewed probes. (Where the budget is too small for a pilot, all of it is spent at once.)
    """
    if max_probes <= 2 * FIRST_STAGE:
        values, spent = draw(max_probes), max_probes
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
            return ProbeMean(mean, stderr, count, spent)
        if spent >= max_probes:
            reached = error / size if size else math.inf
            warnings.warn(
                f"{what}: relative standard error {reached:.2g} after {count} probes, "
                f"{rtol:.2g} was asked for; allow more with max_products",
                ToleranceWarning,
                stacklevel=stacklevel,
            )
            return ProbeMean(mean, stderr, count, spent)
        more = draw(_rounded(min(_needed(values, offset, rtol), 8 * count) - count, max_probes - spent))
        values = torch.cat([values, more])
        spent += len(more)


def _needed(values: Tensor, offset: Tensor, rtol: float) -> float:
    """How many probes of this spread the tolerance takes, and 10 % over."""
    error = float(torch.linalg.vector_norm(values.std(0)))
    target = rtol * float(torch.linalg.vector_norm(offset + values.mean(0)))
    if error == 0 or not math.isfinite(error):
        return 0
    return 1.1 * (error / target) ** 2 if target > 0 else math.inf


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
