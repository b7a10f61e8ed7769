"""Alpha spending and Holm's procedure, against published boundaries, an independent integral and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from noisescape.experiments.group_sequential import (
    Decision,
    SequentialTest,
    boundaries,
    holm,
    spent,
)

LOOKS = (12, 20, 30, 40)


def z(bounds: tuple[float, ...]) -> np.ndarray:
    return np.asarray(stats.norm.isf(np.array(bounds) / 2))


@pytest.mark.parametrize(
    ("looks", "published"),
    [
        # Lan–DeMets spending of O'Brien–Fleming type, two-sided 0.05, equal steps: as tables and ld98 have them
        ((1, 2), (2.9626, 1.9686)),
        ((1, 2, 3), (3.7103, 2.5114, 1.9930)),
        ((1, 2, 3, 4), (4.3326, 2.9631, 2.3590, 2.0141)),
        ((1, 2, 3, 4, 5), (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
    ],
)
def test_boundaries_are_the_published_ones(looks: tuple[int, ...], published: tuple[float, ...]) -> None:
    # their programs integrate on a grid: the fourth decimal is not sure
    assert z(boundaries(looks, 0.05)) == pytest.approx(published, abs=2e-4)


@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.01])
@pytest.mark.parametrize("n", [1, 12])
def test_a_single_look_has_all_of_the_error(n: int, alpha: float) -> None:
    assert boundaries((n,), alpha) == (alpha,)
    assert spent(1.0, alpha) == pytest.approx(alpha, rel=1e-12)


def test_the_error_is_spent_as_the_function_says() -> None:
    """P(no crossing at the first k looks) = 1 − spent(t_k), by scipy's multivariate normal."""
    shares = np.array(LOOKS) / LOOKS[-1]
    bounds = z(boundaries(LOOKS, 0.05))
    correlations = np.sqrt(np.minimum.outer(shares, shares) / np.maximum.outer(shares, shares))
    for count in (2, 3, 4):
        normal = stats.multivariate_normal(cov=correlations[:count, :count], maxpts=200_000, abseps=1e-6, seed=0)
        inside = normal.cdf(bounds[:count], lower_limit=-bounds[:count])
        assert inside == pytest.approx(1 - spent(shares[count - 1]), abs=3e-6)


@pytest.mark.parametrize("looks", [LOOKS, (1, 2, 3, 4), (5, 6, 40)])
def test_boundaries_rise_with_the_level(looks: tuple[int, ...]) -> None:
    """What Holm's procedure rests on: a look that rejects at a level rejects at every higher one."""
    levels = [0.05 / m for m in range(1, 9)]
    for high, low in itertools.pairwise(levels):
        assert all(a > b for a, b in zip(boundaries(looks, high), boundaries(looks, low), strict=True))


@pytest.mark.parametrize(
    ("looks", "alpha", "message"),
    [
        ((), 0.05, "looks are numbers of seeds that rise"),
        ((0, 3), 0.05, "looks are numbers of seeds that rise"),
        ((3, 3), 0.05, "looks are numbers of seeds that rise"),
        ((4, 3), 0.05, r"looks are numbers of seeds that rise, from 1 on, not \(4, 3\)"),
        ((3, 4), 0.0, "lies strictly between 0 and 1, not 0"),
        ((3, 4), 1.0, "lies strictly between 0 and 1, not 1"),
    ],
)
def test_looks_and_errors_that_make_no_test_are_refused(looks: tuple[int, ...], alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundaries(looks, alpha)


def t_tests(values: np.ndarray) -> np.ndarray:
    """The p of Student's test of mean 0 at each look, (repetitions, looks)."""
    return np.stack([stats.ttest_1samp(values[:, :n], 0.0, axis=1).pvalue for n in LOOKS], axis=1)


def test_the_error_of_students_test_at_all_looks_is_close_to_the_nominal_one() -> None:
    """Of 40,000 sequences without an effect; tested at 5 % at every look one in eight would find one."""
    count = 40_000
    p = t_tests(np.random.default_rng(0).standard_normal((count, LOOKS[-1])))
    rejected = (p < np.array(boundaries(LOOKS, 0.05))).any(axis=1).mean()
    assert rejected == pytest.approx(0.0513, abs=3 * np.sqrt(0.05 * 0.95 / count))
    assert (p < 0.05).any(axis=1).mean() == pytest.approx(0.1256, abs=3 * np.sqrt(0.1256 * 0.8744 / count))


def test_the_error_with_known_variances_is_the_nominal_one() -> None:
    count = 100_000
    sums = np.random.default_rng(6).standard_normal((count, LOOKS[-1])).cumsum(axis=1)
    scores = np.abs(sums[:, np.array(LOOKS) - 1]) / np.sqrt(LOOKS)
    for alpha in (0.05, 0.05 / 3):
        rejected = (scores > z(boundaries(LOOKS, alpha))).any(axis=1).mean()
        assert rejected == pytest.approx(alpha, abs=3 * np.sqrt(alpha / count))


def test_holm_with_looks_holds_the_error_of_the_family() -> None:
    """Three hypotheses, two of them true and correlated, the third false: a true one is rejected in 5 % at most."""
    count = 4000
    random = np.random.default_rng(1)
    shared = random.standard_normal((count, LOOKS[-1]))
    one, other, effect = (random.standard_normal((count, LOOKS[-1])) for _ in range(3))
    p = [t_tests(values) for values in (0.5 * shared + one, 0.5 * shared + other, effect + 2.0)]
    wrong, raised = 0, 0
    for repetition in range(count):
        tests = [SequentialTest(LOOKS, tuple(column[repetition])) for column in p]
        decisions = holm(tests)
        assert decisions[2].crossed is not None
        wrong += any(decision.crossed is not None for decision in decisions[:2])
        raised += decisions[0].level == 0.025
    assert raised > 0.9 * count, "the false one leaves its error to the others"
    assert 0.03 < wrong / count < 0.05 + 4 * np.sqrt(0.05 * 0.95 / count)


def test_holm_is_holms_where_every_test_has_one_look() -> None:
    """Against its definition by ordered p values."""
    random = np.random.default_rng(2)
    for _ in range(300):
        p = random.uniform(0, 0.08, 4)
        ordered = np.sort(p)
        steps = [value < 0.05 / (4 - place) for place, value in enumerate(ordered)]
        rejected = {value for place, value in enumerate(ordered) if all(steps[: place + 1])}
        found = holm([SequentialTest((12,), (value,)) for value in p])
        assert [decision.crossed == 0 for decision in found] == [value in rejected for value in p]


def test_a_look_from_before_a_level_rose_counts() -> None:
    """0.0015 at the first of two looks: too much for a third of the error, little enough once another left."""
    looks = (10, 20)
    assert boundaries(looks, 0.05 / 2)[0] < 0.0015 < boundaries(looks, 0.05)[0]
    early = SequentialTest(looks, (0.0015, 0.9))
    assert holm([early, SequentialTest((12,), (0.5,))]) == [Decision(0.025, None), Decision(0.025, None)]
    assert holm([early, SequentialTest((12,), (0.01,))]) == [Decision(0.05, 0), Decision(0.025, 0)]


def test_before_the_first_look_nothing_is_rejected_and_no_error_is_freed() -> None:
    found = holm([SequentialTest(LOOKS, ()), SequentialTest((12,), (0.03,)), SequentialTest((12,), (0.02,))])
    assert found == [Decision(0.05 / 3, None)] * 3
    assert holm([]) == []
