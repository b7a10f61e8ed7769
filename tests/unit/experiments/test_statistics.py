"""Intervals of rates and means, and seeds derived from keys."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from noisescape.experiments.statistics import (
    derived_seed,
    fisher_z,
    mean_over,
    rank_correlation,
    seeds_for,
    t_test,
    wilson,
)


@pytest.mark.parametrize("trials", [1, 7, 100, 4000])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_wilson_is_the_textbook_formula(trials: int, share: float) -> None:
    """(p̂ + z²/2n ± z√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), Wilson (1927)."""
    successes = round(trials * share)
    rate, z = successes / trials, float(stats.norm.ppf(0.975))
    centre = rate + z**2 / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    found = wilson(successes, trials)
    assert (found.rate, found.n) == (rate, trials)
    assert found.low == pytest.approx((centre - half) / (1 + z**2 / trials), abs=1e-12)
    assert found.high == pytest.approx((centre + half) / (1 + z**2 / trials), abs=1e-12)
    assert 0 <= found.low <= rate <= found.high <= 1


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_known_values(successes: int, trials: int, low: float, high: float) -> None:
    """The last: Newcombe (1998), table I."""
    found = wilson(successes, trials)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    """Exactly, by summing the binomial; the interval's coverage wobbles around its nominal 95 %."""
    for rate in (0.05, 0.3, 0.5):
        inside = [wilson(count, 200).low <= rate <= wilson(count, 200).high for count in range(201)]
        coverage = float(stats.binom.pmf(np.arange(201), 200, rate)[inside].sum())
        assert 0.93 < coverage < 0.975


def test_mean_over_is_students() -> None:
    values = [1.0, 4.0, 2.5, 0.5]
    found = mean_over(values)
    assert found.value == pytest.approx(2.0)
    assert found.stderr == pytest.approx(float(stats.sem(values)))
    assert found.interval() == pytest.approx(stats.t.interval(0.95, 3, loc=2.0, scale=stats.sem(values)))


def test_mean_over_leaves_out_what_is_not_finite() -> None:
    assert mean_over([1.0, math.nan, 3.0, math.inf]) == mean_over([1.0, 3.0])


def test_one_value_says_nothing_of_its_error() -> None:
    found = mean_over([2.0, math.nan])
    assert (found.value, found.stderr) == (2.0, math.inf)
    assert found.interval() == (-math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_no_value_no_mean(values: list[float]) -> None:
    found = mean_over(values)
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)
    assert all(map(math.isnan, found.interval()))


def test_equal_values_have_no_error() -> None:
    assert mean_over([3.0, 3.0, 3.0]).interval() == (3.0, 3.0)


def test_derived_seeds_are_fixed_by_their_key_and_fit_every_generator() -> None:
    assert derived_seed(3, 1, 4) == derived_seed(3, 1, 4)
    for key in itertools.product(range(3), repeat=3):
        assert 0 <= derived_seed(*key) < 2**63
        torch.Generator().manual_seed(derived_seed(*key))
        np.random.default_rng(derived_seed(*key))


def test_derived_seeds_of_different_keys_differ() -> None:
    for length in (2, 3, 4):
        keys = [*itertools.product(range(8), repeat=length)]
        assert len({derived_seed(*key) for key in keys}) == len(keys)
    assert len({derived_seed(seed, 1, 0) for seed in range(5000)}) == 5000


def test_generators_of_neighbouring_keys_are_uncorrelated() -> None:
    count = 20_000
    streams = torch.stack(
        [
            torch.randn(count, generator=torch.Generator().manual_seed(derived_seed(seed, part, 0)))
            for seed, part in itertools.product(range(3), repeat=2)
        ]
    )
    off_diagonal = torch.corrcoef(streams)[~torch.eye(9, dtype=torch.bool)]
    assert float(off_diagonal.abs().max()) < 4.5 / math.sqrt(count)


def test_p_is_that_of_students_test() -> None:
    values = [1.0, 4.0, 2.5, 0.5]
    for threshold in (0.0, 2.5, 5.0):
        expected = stats.ttest_1samp(values, threshold).pvalue
        assert t_test(mean_over(values), threshold) == pytest.approx(expected, rel=1e-12)


def test_p_is_a_twentieth_at_the_end_of_the_interval() -> None:
    found = mean_over([1.0, 4.0, 2.5, 0.5])
    for end in found.interval():
        assert t_test(found, end) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("values", "p"),
    [([2.0, 2.0], 1.0), ([3.0] * 2, 0.5), ([1.0] * 6, 1 / 32), ([2.0], math.nan), ([], math.nan)],
)
def test_p_where_there_is_no_spread_or_no_error(values: list[float], p: float) -> None:
    assert t_test(mean_over(values), 2.0) == pytest.approx(p, nan_ok=True)


@pytest.mark.parametrize("count", [3, 4, 6, 11])
def test_only_a_perfect_rank_correlation_is_taken_back(count: int) -> None:
    """To half way between it and the next, that of one exchange of neighbours."""
    ranks = [*range(count)]
    next_one = rank_correlation(ranks, [1, 0, *ranks[2:]])
    assert math.tanh(fisher_z(1.0, count)) == pytest.approx((1 + next_one) / 2)
    assert fisher_z(-1.0, count) == -fisher_z(1.0, count)
    for correlation in (next_one, 0.3, 0.0, -next_one):
        assert math.tanh(fisher_z(correlation, count)) == pytest.approx(correlation)
    assert math.isnan(fisher_z(math.nan, count))


def test_two_points_have_no_correlation() -> None:
    assert (fisher_z(1.0, 2), fisher_z(-1.0, 2)) == (0.0, 0.0)
    assert math.isnan(fisher_z(math.nan, 1))


@pytest.mark.slow
def test_the_interval_by_fishers_z_covers_as_often_as_it_says() -> None:
    """Twelve seeds, each a rank correlation of eight pairs that are correlated; the true mean z by many of them."""
    random = np.random.default_rng(4)

    def drawn(count: int) -> np.ndarray:
        one = random.standard_normal((count, 8))
        other = 0.7 * one + random.standard_normal((count, 8))
        return np.array([fisher_z(rank_correlation(*pair), 8) for pair in zip(one, other, strict=True)])

    truth, seeds = drawn(4000).mean(), drawn(12 * 500).reshape(500, 12)
    inside = sum(low <= truth <= high for low, high in (mean_over([*own]).interval() for own in seeds))
    assert inside / 500 == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.5])
def test_the_seeds_that_are_needed_find_the_difference_as_often_as_they_should(ratio: float) -> None:
    """By 40,000 simulated samples: with n seeds in 80 % or more, with one less in fewer."""
    needed = seeds_for(0.01, 0.01 * ratio)
    random, count = np.random.default_rng(3), 40_000
    shares = []
    for n in (needed, needed - 1):
        samples = random.normal(1, ratio, (count, n))
        statistic = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
        shares.append(float((np.abs(statistic) > stats.t.ppf(0.975, n - 1)).mean()))
    error = 4.5 * math.sqrt(0.8 * 0.2 / count)
    assert shares[0] > 0.8 - error
    assert shares[1] < 0.8 + error
    assert shares[0] - shares[1] > -error


def test_seeds_that_are_needed_depend_on_the_ratio_alone_and_none_is_enough() -> None:
    assert seeds_for(1.0, 3.0) == seeds_for(0.01, 0.03)
    assert seeds_for(1.0, 0.0) == 2
    # for many seeds those of the normal distribution, ((1.960 + 0.842)·s/δ)², and two more
    assert seeds_for(1.0, 10.0) == pytest.approx((2.8016 * 10) ** 2 + 2, abs=2)
    for difference, deviation in ((0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, math.inf), (1.0, math.nan)):
        with pytest.raises(ValueError, match="a positive difference and a finite deviation are needed"):
            seeds_for(difference, deviation)
