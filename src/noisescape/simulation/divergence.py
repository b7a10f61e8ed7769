"""When a trajectory has left every bound."""

from __future__ import annotations

from torch import Tensor

RUNAWAY = 1e8
"""A replica with a coordinate beyond this, or not finite, has diverged."""


def lost(theta: Tensor) -> Tensor:
    """Whether each replica has: (D,) → (), or (R, D) → (R,)."""
    return ~(theta.abs().amax(-1) < RUNAWAY)  # also true for NaN
