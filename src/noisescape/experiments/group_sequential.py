"""Tests of a mean at several looks at growing data, and Holm's step-down over several such tests.

A mean may be tested again as seeds are added, if the looks are fixed beforehand and share one error: the function
:func:`spent` says how much of it is used up by a share t of the data, and :func:`boundaries` turns that into a
nominal p for every look. Spending follows O'Brien and Fleming: hardly anything early, nearly all at the last look.

Sources: Lan & DeMets, Biometrika 70 (1983); Jennison & Turnbull, Group Sequential Methods (2000), chapters 7 and
19; Holm, Scand. J. Statist. 6 (1979); Maurer & Bretz, Statistics in Biopharmaceutical Research 5 (2013).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisescape.errors import InvalidValueError

Array = np.ndarray[Any, np.dtype[np.float64]]

ALPHA = 0.05
"""The two-sided error that is shared out."""
NODES = 256
"""Of the quadrature over the interval that a test goes on in; twice as many change no boundary by over 1e-12."""


def spent(share: float, alpha: float = ALPHA) -> float:
    """The two-sided error used up when a share t of the data is there: 4(1 − Φ(z_{1−α/4}/√t)).

    Each of the two tails has the error a = α/2 and spends it as 2(1 − Φ(z_{1−a/2}/√t)), the function of Lan and
    DeMets for one boundary. At t = 1 all of α is spent.

    >>> round(spent(1.0), 12), round(spent(0.5), 5)
    (0.05, 0.00305)
    """
    from scipy import stats  # slow to import, and every worker process would

    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(share)))


@functools.cache
def boundaries(looks: tuple[int, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """The two-sided nominal p below which each look rejects.

    Under the hypothesis the sums S_k = √t_k·Z_k, t_k = n_k/n_K, are a Brownian motion at the times t_k, so that
    Corr(Z_i, Z_j) = √(t_i/t_j). The k-th boundary c_k solves

        P(|Z_1| < c_1, …, |Z_{k−1}| < c_{k−1}, |Z_k| ≥ c_k) = spent(t_k) − spent(t_{k−1}),

    the density of S_{k−1} while no boundary was crossed being carried on from look to look by quadrature. The test
    at a look is Student's: its p is compared with the nominal one, which for few seeds is not exact but close: at
    12, 20, 30 and 40 seeds 5.1 % in place of 5 % (simulated).

    Args:
        looks: numbers of seeds, rising; the last is where all of α is spent.
        alpha: two-sided error of all looks together.

    Raises:
        ValueError: looks that do not rise from 1 or more, an error outside (0, 1).

    >>> boundaries((12,))
    (0.05,)
    """
    if not looks or looks[0] < 1 or any(late <= early for early, late in itertools.pairwise(looks)):
        raise InvalidValueError(f"looks are numbers of seeds that rise, from 1 on, not {looks}")
    if not 0 < alpha < 1:
        raise InvalidValueError(f"the error of all looks lies strictly between 0 and 1, not {alpha}")
    if len(looks) == 1:
        return (alpha,)
    from scipy import optimize, stats  # slow to import, and every worker process would

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    found: list[float] = []
    before, used = 0.0, 0.0
    points, masses = np.zeros(1), np.ones(1)  # S_0 is 0
    for share in (look / looks[-1] for look in looks):
        step = math.sqrt(share - before)
        crossing = functools.partial(_crossing, points=points, masses=masses, share=share, step=step)
        rest = spent(share, alpha) - used
        bound = float(optimize.brentq(lambda c, of=crossing, rest=rest: of(c) - rest, 0.0, 40.0, xtol=1e-13))
        found.append(float(2 * stats.norm.sf(bound)))
        half = min(bound, 10.0) * math.sqrt(share)  # nothing lies beyond 10 standard deviations
        density = stats.norm.pdf((half * nodes[:, None] - points) / step) @ masses / step
        points, masses = half * nodes, half * weights * density
        before, used = share, spent(share, alpha)
    return tuple(found)


def _crossing(bound: float, *, points: Array, masses: Array, share: float, step: float) -> float:
    """P(|Z| ≥ bound at a share of the data) and none before, for S with these masses a step earlier."""
    from scipy import stats  # slow to import, and every worker process would

    end = bound * math.sqrt(share)
    return float(masses @ (stats.norm.sf((end - points) / step) + stats.norm.cdf((-end - points) / step)))


@dataclass(frozen=True)
class SequentialTest:
    """One hypothesis: where it may be looked at, and what the looks taken so far gave.

    Attributes:
        looks: the planned numbers of seeds.
        p: two-sided p of the first looks, as many as were taken; 1 where a look may not reject.
    """

    looks: tuple[int, ...]
    p: tuple[float, ...]

    def crossed(self, alpha: float) -> int | None:
        """The first look that rejects at an error of ``alpha``, counted from 0; None if none does."""
        below = (p < bound for p, bound in zip(self.p, boundaries(self.looks, alpha), strict=False))
        return next((index for index, rejects in enumerate(below) if rejects), None)


@dataclass(frozen=True)
class Decision:
    """What Holm's procedure says of one hypothesis.

    Attributes:
        level: the error at which it was tested last.
        crossed: the look that rejects it at that level, counted from 0; None if it is not rejected.
    """

    level: float
    crossed: int | None


def holm(tests: Sequence[SequentialTest], alpha: float = ALPHA) -> list[Decision]:
    """Holm's step-down: with m hypotheses left each is tested at α/m; those rejected leave, until none is.

    A hypothesis is tested at its own boundaries for the level that it has by then, at *all* looks taken, also at
    those from before its level rose. The probability of rejecting any true hypothesis is at most α. For let T be
    the set of true ones. When the first of them is rejected, all of T is still left, so its level is α/m ≤ α/|T|;
    boundaries rise with the level (a test holds them to it), so it crosses its boundaries for α/|T| as well. Each
    of T does that with probability at most α/|T|, however many of its looks are taken, since the boundaries of
    every level are fixed before the data; so any of them does with at most α, whatever the dependence between them.
    Maurer and Bretz (2013) prove it for weighted graphs of hypotheses, of which Holm's is one.

    The error is that of rejecting a true hypothesis of equality. The direction is read off the sign of the effect;
    that wrong directions are counted in α as well is proven for one test, and for several that are independent
    only.
    """
    open_tests = dict(enumerate(tests))
    decided: dict[int, Decision] = {}
    while open_tests:
        level = alpha / len(open_tests)
        crossed = {index: test.crossed(level) for index, test in open_tests.items()}
        rejected = {index: Decision(level, look) for index, look in crossed.items() if look is not None}
        if not rejected:
            decided |= {index: Decision(level, None) for index in open_tests}
            break
        decided |= rejected
        open_tests = {index: test for index, test in open_tests.items() if index not in rejected}
    return [decided[index] for index in range(len(tests))]
