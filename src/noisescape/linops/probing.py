"""Probe until the error bar is narrow enough: the loop behind every randomised estimate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_STAGE = 16
BLOCK = 8


class ToleranceWarning(UserWarning):
    """The requested relative tolerance was not reached within the allowed products."""


@dataclass(frozen=True)
class ProbeMean:
    """Mean of iid probes, its standard error, and how many there were."""

    mean: Tensor
    stderr: Tensor
    probes: int

    @property
    def dof(self) -> float:
        """Degrees of freedom of ``stderr``."""
        return self.probes - 1


def mean_of_probes(
    draw: Callable[[int], Tensor], *, offset: Tensor, rtol: float, max_probes: int, what: str
) -> ProbeMean:
    """Average iid probes until ‖stderr‖ ≤ rtol·‖offset + mean‖.

    Args:
        draw: m ↦ m iid probe values, (m, ...).
        offset: the part of the quantity known exactly; the tolerance is relative to the whole.
        rtol: requested relative standard error.
        max_probes: where to stop regardless, with a :class:`ToleranceWarning`.
        what: the quantity's name, for the warning.

    A first stage of 16 probes estimates the spread; the number still needed is then drawn at once
    (Stein's two-stage rule), so that the stopping time hardly depends on the values it stops on.
    """
    values = draw(min(FIRST_STAGE, max_probes))
    while True:
        count = len(values)
        mean = values.mean(0)
        stderr = values.std(0) / math.sqrt(count)
        error = float(torch.linalg.vector_norm(stderr))
        target = rtol * float(torch.linalg.vector_norm(offset + mean))
        if error <= target or not math.isfinite(error):
            return ProbeMean(mean, stderr, count)
        if count >= max_probes:
            warnings.warn(
                f"{what}: relative standard error {error / target * rtol:.2g} after {count} probes, "
                f"{rtol:.2g} was asked for; allow more with max_products",
                ToleranceWarning,
                stacklevel=3,
            )
            return ProbeMean(mean, stderr, count)
        # 10 % over the forecast, so that one further stage usually suffices
        needed = 1.1 * count * (error / target) ** 2 if target > 0 else math.inf
        more = min(max_probes, needed, 8 * count) - count
        values = torch.cat([values, draw(max(BLOCK, BLOCK * math.ceil(more / BLOCK)))])


def check_tolerance(rtol: float, max_products: int) -> None:
    """Refuse a tolerance or a budget that makes no sense."""
    if not 0 < rtol < math.inf:
        raise ValueError(f"rtol is a relative standard error and must be positive, not {rtol}")
    if max_products < 2:
        raise ValueError(f"max_products must allow at least 2 probes for a standard error, not {max_products}")


def in_blocks(draw_block: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """Draw in blocks of columns that fit memory: few enough for large D, enough to batch."""

    def draw(count: int) -> Tensor:
        sizes = [BLOCK] * (count // BLOCK) + ([count % BLOCK] if count % BLOCK else [])
        return torch.cat([draw_block(size) for size in sizes])

    return draw


def rademacher(size: int, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of independent signs, (size, count)."""
    signs = torch.randint(0, 2, (size, count), generator=generator, device=like.device)
    return (2 * signs - 1).to(like.dtype)


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span, (D, K)."""
    return torch.linalg.qr(columns).Q


def project_out(basis: Tensor, columns: Tensor) -> Tensor:
    """(I − U Uᵀ) X for an orthonormal U."""
    return columns - basis @ (basis.T @ columns)
