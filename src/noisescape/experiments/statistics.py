"""Intervals for what replicas and seeds say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % Wilson interval."""

    rate: float
    low: float
    high: float
    n: int


def wilson(successes: int, trials: int) -> Rate:
    """The share of successes.

    >>> wilson(0, 100).high < 0.04
    True
    """
    from scipy import stats  # slow to import, and every worker process would

    interval = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Rate(successes / trials, float(interval.low), float(interval.high), trials)


@dataclass(frozen=True)
class Difference:
    """A difference of two rates with its interval."""

    value: float
    low: float
    high: float


def rate_difference(one: tuple[int, int], other: tuple[int, int], *, comparisons: int = 1) -> Difference:
    """The first rate minus the second, each (successes, trials), with Newcombe's hybrid of Wilson intervals.

    The level is 1 − 0.05/comparisons (Bonferroni).

    >>> rate_difference((50, 100), (10, 100)).low > 0.25
    True
    """
    from scipy import stats  # slow to import, and every worker process would

    level = 1 - 0.05 / comparisons
    rates, lows, highs = [], [], []
    for successes, trials in (one, other):
        interval = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
        rates.append(successes / trials)
        lows.append(float(interval.low))
        highs.append(float(interval.high))
    value = rates[0] - rates[1]
    down = math.hypot(rates[0] - lows[0], highs[1] - rates[1])
    up = math.hypot(highs[0] - rates[0], rates[1] - lows[1])
    return Difference(value, value - down, value + up)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; NaN if a value is not finite or all are equal.

    >>> rank_correlation([1.0, 2.0, 3.0], [5.0, 4.0, 1.0])
    -1.0
    """
    from scipy import stats  # slow to import, and every worker process would

    if not all(map(math.isfinite, [*one, *other])) or len(set(one)) < 2 or len(set(other)) < 2:
        return math.nan
    return round(float(stats.spearmanr(one, other).statistic), 12)


def mean_over(values: Sequence[float]) -> Estimate:
    """Mean and standard error of independent values, NaN left out; infinite error for fewer than two."""
    finite = np.asarray([value for value in values if math.isfinite(value)], dtype=float)
    if len(finite) == 0:
        return Estimate(math.nan, math.nan)
    if len(finite) == 1:
        return Estimate(float(finite[0]), math.inf, dof=1)
    return Estimate(float(finite.mean()), float(finite.std(ddof=1) / len(finite) ** 0.5), dof=len(finite) - 1)


def t_test(mean: Estimate, threshold: float) -> float:
    """The two-sided p of Student's test that the mean is the threshold; NaN where nothing is known of its error.

    It is below 0.05 exactly where the mean's 95 % interval is clear of the threshold. Equal values have no spread
    to judge by, but n of them lie on one side with probability 2^(1 − n): the p of the sign test.

    >>> round(t_test(Estimate(1.0, 0.5, dof=3), 0.0), 4)
    0.1393
    """
    from scipy import stats  # slow to import, and every worker process would

    if not math.isfinite(mean.stderr):
        return math.nan
    away = abs(mean.value - threshold)
    if mean.stderr == 0:
        return float(0.5**mean.dof) if away else 1.0
    return float(2 * stats.t.sf(away / mean.stderr, mean.dof))


def seeds_for(difference: float, deviation: float, *, power: float = 0.8) -> int:
    """How many seeds find a true difference in a two-sided t test at 5 % with this probability.

    The least n at which the t distribution of n − 1 degrees, shifted by √n·difference/deviation, has so much beyond
    the test's quantiles.

    Args:
        difference: within seeds, in any unit.
        deviation: its standard deviation over seeds, in that unit, not negative.
        power: the probability.

    Raises:
        ValueError: a difference that is not positive, a deviation that is negative or not finite.

    >>> seeds_for(1.0, 1.0), seeds_for(1.0, 2.0)
    (10, 34)
    """
    from scipy import stats  # slow to import, and every worker process would

    if not (difference > 0 and 0 <= deviation < math.inf):
        raise InvalidValueError(
            f"a positive difference and a finite deviation are needed, not {difference}, {deviation}"
        )
    if deviation == 0:
        return 2

    def found(n: int) -> bool:
        shift, quantile = math.sqrt(n) * difference / deviation, stats.t.ppf(0.975, n - 1)
        return bool(stats.nct.sf(quantile, n - 1, shift) + stats.nct.cdf(-quantile, n - 1, shift) >= power)

    low, high = 1, 2
    while not found(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def fisher_z(correlation: float, count: int) -> float:
    """artanh r of a rank correlation of ``count`` pairs, 2 or more; tanh maps mean and interval back into (−1, 1).

    Without ties Spearman's r is 1 − 6Σd²/(n(n² − 1)) with an even Σd². The value 1 stands for a Σd² of 0 up to 1,
    half way to the next one, and is taken for that of 1, which has an artanh; −1 likewise. For two pairs, where r
    is 1 or −1, that is 0: two points have no correlation. NaN for NaN.

    Source: Fisher, Metron 1 (1921).

    >>> fisher_z(0.0, 6), round(math.tanh(fisher_z(-1.0, 3)), 12)
    (0.0, -0.75)
    """
    if not math.isfinite(correlation):
        return math.nan
    most = 1 - 6 / (count * (count**2 - 1))
    return math.atanh(min(max(correlation, -most), most))


def measured_every(steps: int) -> int:
    """Steps between two measurements of the injected noise in a run of so many: 20 of them, in a long run 300.

    ‖ε‖² of noise along one direction has a standard deviation of √2 times its mean: over ten seeds, 20 measurements
    each do not show that its trace lies within a quarter of its target, 300 do. Always odd, so that steps between
    two refreshes are seen as often as those at one.

    >>> measured_every(500), measured_every(20_000)
    (25, 67)
    """
    return max(3, min(steps // 20, max(25, steps // 300))) | 1


def derived_seed(*key: int) -> int:
    """An independent seed for each key, by NumPy's seed sequences.

    Among keys of one length: zeros at the end of a key do not count.

    >>> derived_seed(0, 1) != derived_seed(1, 0)
    True
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return int(state) >> 1  # NumPy 1 does not shift a uint64 by a Python number
