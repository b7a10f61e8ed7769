"""From the values of several seeds, or from two rates, to a verdict; and the margins that count as none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from noisescape.experiments.claims.claim import Result, Verdict
from noisescape.experiments.group_sequential import ALPHA
from noisescape.experiments.statistics import mean_over, rate_difference, t_test

SHARPNESS_FACTOR = 1.5
"""Expected sharpnesses within this factor of each other count as the same."""
BARRIER = 0.05
"""A rise of the training loss by more than this between two points parts their basins."""
LEAST_BARRIER = 1e-3
"""A smaller rise counts as one of this size, so that it has a logarithm."""
CENSORED = 0.2
"""The share of runs that may miss the loss they are compared at."""
SAME_ACCURACY = 0.01
"""A difference of test accuracy below this counts as none."""
CLOSE_ACCURACY = 0.02
"""The same beside a gap of several points that is to be made up for, in the noise-knob experiment."""
SAME_NOISE = 0.1
"""A trace of injected noise within this share of its target's is the target's, where that is itself the claim."""
SAME_RATE = 0.05
"""A difference of escape rates below this counts as none."""
EDGE = (0.9, 1.05)
"""Within these λ₁·η/2 is at the edge of stability."""
STILL = 0.1
"""A λ₁ that rises by more over the last quarter of a run has not settled."""
ALIGNED = 0.1
"""The projection coefficient a is bounded away from 0 if it is over this."""


def exceeds(values: Sequence[float], threshold: float, *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies above the threshold, contradicted if below."""
    return _judged(values, lambda low, high: verdict(low > threshold, high < threshold), (threshold,), case, veto)


def falls(values: Sequence[float], *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies below 0, contradicted if above."""
    return _judged(values, lambda low, high: verdict(high < 0, low > 0), (0.0,), case, veto)


def vanishes(values: Sequence[float], margin: float, *, case: str = "", veto: str | None = None) -> Result:
    """Supported if the mean's interval lies within ±margin, contradicted if outside."""
    return lies_within(values, -margin, margin, case=case, veto=veto)


def lies_within(
    values: Sequence[float], least: float, most: float, *, case: str = "", veto: str | None = None
) -> Result:
    """Supported if the mean's interval lies between these two, contradicted if outside."""
    return _judged(values, lambda low, high: _within(least, most, low, high), (least, most), case, veto)


def mapped(found: Result, back: Callable[[float], float]) -> Result:
    """The result on the scale that its statistic came from, by a rising function."""
    return replace(found, effect=back(found.effect), low=back(found.low), high=back(found.high))


def same_rate(one: tuple[int, int], other: tuple[int, int], *, comparisons: int, case: str) -> Result:
    """Supported if the interval of two rates' difference lies within ±SAME_RATE, contradicted if outside."""
    found = rate_difference(one, other, comparisons=comparisons)
    return Result(
        _within(-SAME_RATE, SAME_RATE, found.low, found.high), found.value, found.low, found.high, other[1], case
    )


def verdict(supported: bool, contradicted: bool) -> Verdict:
    """What neither supports nor contradicts leaves undecided."""
    return "supported" if supported else "contradicted" if contradicted else "undecided"


def _within(least: float, most: float, low: float, high: float) -> Verdict:
    return verdict(least < low and high < most, high < least or low > most)


def _judged(
    values: Sequence[float],
    decide: Callable[[float, float], Verdict],
    ends: Sequence[float],
    case: str,
    veto: str | None,
) -> Result:
    found = mean_over(values)
    low, high = found.interval()
    p = t_test(found, min(ends, key=lambda end: abs(end - found.value)))
    missing = sum(not math.isfinite(value) for value in values)
    reasons = (
        f"diverged or not defined in {missing} of {len(values)} seeds" if missing else None,
        "one seed decides nothing" if len(values) < 2 else None,
        f"the same value in all {len(values)} seeds, too few for a sign test"
        if low == high and p >= ALPHA
        else None,
        veto,
    )
    whole = "; ".join(filter(None, reasons)) or None
    decided = decide(low, high) if whole is None else "undecided"
    return Result(decided, found.value, low, high, len(values) - missing, case, whole, p=p)
