"""Tr C, ‖ḡ‖² and their ratio from the squared norms of a step's pieces, and the intervals of what is smoothed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
"""Coverage of the intervals."""


@dataclass(frozen=True)
class Weights:
    """What is known of a step's pieces beside their gradients; sums, so that pieces and ranks add up.

    The gradient of a step is P = Σ_k w_k G_k, G_k the mean gradient of the b_k samples of piece k.

    Attributes:
        samples: B = Σ b_k.
        pieces: K.
        total: Σ w_k.
        squared: Σ w_k².
        squared_over_size: Σ w_k²/b_k.
    """

    samples: float
    pieces: float
    total: float
    squared: float
    squared_over_size: float

    @staticmethod
    def of(sizes: Sequence[float], weights: Sequence[float]) -> Weights:
        """Of pieces with these numbers of samples and these weights."""
        return Weights(
            samples=float(sum(sizes)),
            pieces=float(len(sizes)),
            total=float(sum(weights)),
            squared=float(sum(w * w for w in weights)),
            squared_over_size=float(sum(w * w / b for b, w in zip(sizes, weights, strict=True))),
        )

    @property
    def informative(self) -> bool:
        """Whether there are at least two pieces to compare."""
        return self.pieces >= 2 and self.total**2 > self.squared > 0


def moments(piece_norms: Array, step_norms: Array, weights: Weights) -> tuple[Array, Array]:
    """Tr C and ‖ḡ‖² of one step, unbiased, from squared norms.

    With S = Σ_k ‖w_k G_k‖², P = Σ_k w_k G_k and independent pieces at the same θ, E‖w_k G_k‖² = w_k²(‖ḡ‖² + Tr
    C/b_k) and E‖P‖² = (Σ w_k)²‖ḡ‖² + Tr C Σ w_k²/b_k. These are two linear equations; solved,

        ‖ĝ‖² = (‖P‖² − S) / ((Σ w_k)² − Σ w_k²),    Tr Ĉ = (S − ‖ĝ‖² Σ w_k²) / Σ (w_k²/b_k).

    For K equal pieces of b samples, w_k = 1/K, this is Tr Ĉ = b·V and ‖ĝ‖² = ‖P‖² − V/K with V = Σ‖G_k − P‖²/(K −
    1), and the form with a small and a big batch of McCandlish et al. (1812.06162, appendix A.1).

    Args:
        piece_norms: S, any shape.
        step_norms: ‖P‖², the same shape.
        weights: of the pieces; informative.

    Returns:
        (Tr Ĉ, ‖ĝ‖²). C is the covariance of one sample's gradient, not divided by B; either may be negative.
    """
    signal = (step_norms - piece_norms) / (weights.total**2 - weights.squared)
    noise = (piece_norms - signal * weights.squared) / weights.squared_over_size
    return noise, signal


@dataclass(frozen=True)
class Smoothed:
    """Means over the steps of a window, and their ratio.

    Attributes:
        trace: mean of Tr Ĉ.
        trace_stderr: its standard error.
        squared_norm: mean of ‖ĝ‖².
        squared_norm_stderr: its standard error.
        scale: the simple noise scale, ratio of the two means; infinite where the mean of ‖ĝ‖² is not positive.
        scale_stderr: by the delta method; infinite where the scale is.
        scale_low: lower end of the interval of 95 %.
        scale_high: upper end; infinite where ‖ḡ‖² cannot be told from 0.
    """

    trace: float
    trace_stderr: float
    squared_norm: float
    squared_norm_stderr: float
    scale: float
    scale_stderr: float
    scale_low: float
    scale_high: float


def smooth(traces: Sequence[float] | Array, squared_norms: Sequence[float] | Array) -> Smoothed:
    """The ratio of means Σ_t Tr Ĉ_t / Σ_t ‖ĝ_t‖² over steps, never a mean of ratios, with an interval.

    Given θ_t, the errors of different steps are independent, while the true values drift. So the covariance of the
    means is estimated from successive differences (von Neumann 1941), (1/2n) mean of (x_{t+1} − x_t)(x_{t+1} −
    x_t)ᵀ, in which the drift cancels; what the interval covers is the ratio of the true means over the window. It
    is Fieller's (1954), with Student's t at the 2(n − 1)²/(3n − 4) degrees of freedom of that estimate, cut at 0.

    It takes the errors for normal. Where a few samples of heavy-tailed gradients carry ‖ḡ‖², a window that has
    hardly seen them knows nothing of it: over twenty steps of 16 samples it then covers 70 to 80 %.

    Args:
        traces: Tr Ĉ_t in the order of steps, (n,).
        squared_norms: ‖ĝ_t‖², (n,).

    >>> smooth([4.0, 6.0, 5.0], [1.0, 1.0, 1.0]).scale
    5.0
    """
    values = np.stack([np.asarray(traces, float), np.asarray(squared_norms, float)])
    count = values.shape[1]
    trace, squared_norm = (float(mean) for mean in values.mean(1))
    if count < 2:
        scale = trace / squared_norm if squared_norm > 0 else math.inf
        return Smoothed(trace, math.inf, squared_norm, math.inf, scale, math.inf, 0.0, math.inf)
    differences = np.diff(values, axis=1)
    covariance = differences @ differences.T / (2 * count * (count - 1))
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, 2 * (count - 1) ** 2 / (3 * count - 4)))
    low, high = fieller(trace, squared_norm, quantile**2 * covariance)
    if squared_norm > 0:
        scale = trace / squared_norm
        slope = np.array([1.0, -scale]) / squared_norm
        stderr = math.sqrt(max(0.0, float(slope @ covariance @ slope)))
    else:
        scale = stderr = math.inf
    trace_stderr, norm_stderr = np.sqrt(np.diag(covariance))
    return Smoothed(trace, float(trace_stderr), squared_norm, float(norm_stderr), scale, stderr, low, high)


def fieller(numerator: float, denominator: float, spread: Array) -> tuple[float, float]:
    """All r ≥ 0 with (numerator − r·denominator)² ≤ (1, −r) spread (1, −r)ᵀ, as one interval that holds them."""
    a = denominator**2 - float(spread[1, 1])
    half_b = -(numerator * denominator - float(spread[0, 1]))
    c = numerator**2 - float(spread[0, 0])
    discriminant = half_b**2 - a * c
    if a > 0:
        root = math.sqrt(max(0.0, discriminant))
        low, high = (-half_b - root) / a, (-half_b + root) / a
        # below 0 altogether: the denominator is negative beyond its error, which no squared norm is
        return (max(0.0, low), high) if high > 0 else (0.0, math.inf)
    if a == 0 or discriminant <= 0:
        return 0.0, math.inf
    # what lies outside of the two roots: with no root below, the values up to the lower one count too
    upper = (-half_b - math.sqrt(discriminant)) / a
    lower = (-half_b + math.sqrt(discriminant)) / a
    return (max(0.0, upper), math.inf) if lower < 0 else (0.0, math.inf)
