"""Intervals of differences of rates, and rank correlations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from claim_runs import (
    RATES,
    newcombe,
)
from noisescape.experiments.statistics import rank_correlation, rate_difference


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_a_difference_of_rates_is_newcombes(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Table II of his paper, method 10."""
    found = rate_difference(one, other)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.value == one[0] / one[1] - other[0] / other[1]
    back = rate_difference(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize("comparisons", [1, 2, 15])
@pytest.mark.parametrize("one", [(0, 40), (13, 40), (40, 40)])
@pytest.mark.parametrize("other", [(0, 500), (250, 500), (499, 500)])
def test_a_difference_of_rates_is_the_textbook_formula(
    one: tuple[int, int], other: tuple[int, int], comparisons: int
) -> None:
    found = rate_difference(one, other, comparisons=comparisons)
    expected = newcombe(one, other, 1 - 0.05 / comparisons)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def covered(first: float, second: float, trials: int, comparisons: int) -> float:
    """How often the interval holds the true difference: the sum over both binomials, exactly."""
    counts = np.arange(trials + 1)
    inside = np.zeros((trials + 1, trials + 1))
    for one, other in itertools.product(counts.tolist(), repeat=2):
        found = rate_difference((one, trials), (other, trials), comparisons=comparisons)
        inside[one, other] = found.low <= first - second <= found.high
    weights = np.outer(stats.binom.pmf(counts, trials, first), stats.binom.pmf(counts, trials, second))
    return float((inside * weights).sum())


def test_a_difference_of_rates_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.935 < covered(0.5, 0.3, 20, comparisons=1) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [(0.5, 0.5), (0.4, 0.1), (0.05, 0.02), (0.9, 0.1), (0.01, 0.01), (0.3, 0.0)]
)
@pytest.mark.parametrize(("comparisons", "least"), [(1, 0.93), (13, 0.992)])
def test_a_difference_of_rates_covers_the_truth_at_many_rates(
    first: float, second: float, comparisons: int, least: float
) -> None:
    assert covered(first, second, 60, comparisons) > least


def test_a_family_of_corrected_intervals_holds_all_truths_together() -> None:
    """Thirteen differences of the toy's own rates at once, simulated."""
    generator = np.random.default_rng(0)
    pairs = [(a, b) for a, b in itertools.combinations(RATES.values(), 2)][:13]
    trials, draws, held = 500, 60, 0
    for _ in range(draws):
        counts = {share: int(generator.binomial(trials, share)) for share in RATES.values()}
        found = [
            rate_difference((counts[a], trials), (counts[b], trials), comparisons=len(pairs)) for a, b in pairs
        ]
        held += all(f.low <= a - b <= f.high for f, (a, b) in zip(found, pairs, strict=True))
    # at least 95 % are to hold: fewer than this many of 60 would be seen less than once in 10,000 times
    assert held >= stats.binom.ppf(1e-4, draws, 0.95)


def test_rank_correlation_shares_the_ranks_of_ties() -> None:
    """Ranks 1, 2½, 2½, 4 and 1, 3, 2, 4: 4.5/√(4.5·5)."""
    assert rank_correlation([1, 2, 2, 3], [10, 30, 20, 40]) == pytest.approx(4.5 / math.sqrt(22.5))
    # ranks 1½, 1½, 3½, 3½ and 2, 2, 2, 4: 1/√(4·3)·3
    assert rank_correlation([0, 0, 5, 5], [1, 1, 1, 9]) == pytest.approx(3 / math.sqrt(27))


def test_rank_correlation_without_ties_is_spearmans_formula() -> None:
    for order in itertools.permutations(range(1, 5)):
        squares = sum((rank - position) ** 2 for position, rank in enumerate(order, 1))
        found = rank_correlation([math.exp(value) for value in order], [-100.0, 0.0, 1.5, 9.0])
        assert found == pytest.approx(1 - 6 * squares / (4 * 15))


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2, math.nan], [1, 2, 3]), ([1, 2, 3], [1, math.inf, 3]), ([2, 2, 2], [1, 2, 3]), ([], []), ([1], [1])],
)
def test_rank_correlation_of_what_has_no_ranks_is_none(one: list[float], other: list[float]) -> None:
    assert math.isnan(rank_correlation(one, other))
