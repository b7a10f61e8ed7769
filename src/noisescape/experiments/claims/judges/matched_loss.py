"""Judges of the matched-loss runs: every arm at the same training loss, reached without noise.

In every seed an arm has one run or several that differ in their noise alone; its statistic in the seed is their
mean. A run that did not reach the loss has no place to compare, and is not left out either: those that get stuck
are not the same as the others. It counts as a run that came out as gradient descent did (the log ratio or the
difference is 0), and too many of them are a veto.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from noisescape.experiments.claims.claim import Judge, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import (
    BARRIER,
    CENSORED,
    LEAST_BARRIER,
    SHARPNESS_FACTOR,
    exceeds,
    falls,
    vanishes,
)
from noisescape.experiments.constants import DYNAMICS

OTHER_ARMS = tuple(name for name in DYNAMICS if name not in ("gd", "sgd"))
"""All arms beside SGD that are compared with gradient descent."""
UNALIGNED = ("gld-constant", "gld-dynamic", "gld-diagonal", "gld-shuffled")
"""Noises of SGD's trace that do not know the directions of the curvature."""

METRICS = ("reached", "sharpness", "test_accuracy", "barrier")

Values = Callable[[Evidence, str], list[float]]
Rule = Callable[..., Result]


@dataclass(frozen=True)
class End:
    """Where one run of an arm came to, and gradient descent at the same loss.

    Attributes:
        found: what was measured, by metric; NaN where it was not.
        descent: the same of gradient descent.
    """

    found: Mapping[str, float]
    descent: Mapping[str, float]

    @property
    def reached(self) -> bool:
        """Whether it came down to the level of loss."""
        return self.found["reached"] == 1

    @property
    def comparable(self) -> bool:
        """Whether both did."""
        return self.reached and self.descent["reached"] == 1

    @property
    def descent_missed(self) -> bool:
        """Whether gradient descent did not; beside a run that did not, it may not have been asked to."""
        return self.descent["reached"] == 0 or (self.reached and not self.comparable)


def ends(evidence: Evidence, arm: str) -> list[list[End]]:
    """The runs of an arm, for every seed: as many as it should have, those that left nothing included.

    Gradient descent's figures stand beside those of the run, as ``gd_sharpness`` say, where it was measured at that
    run's own loss; else they are those of the arm ``gd``.
    """
    curves = evidence.curves_by("phase", "dynamics", "metric", "replica")
    step = int(evidence.config["steps"])
    recorded = {replica for phase, name, _, replica in curves.names if (phase, name) == ("matched", arm)}
    beside = any(name[:3] == ("matched", arm, "gd_reached") for name in curves.names)
    should = int(evidence.config["noise_seeds"]) if arm == "sgd" else 1

    def figures(name: str, replica: int, prefix: str = "") -> list[dict[str, float]]:
        columns = [curves.at(step, "matched", name, prefix + metric, replica) for metric in METRICS]
        return [dict(zip(METRICS, row, strict=True)) for row in zip(*columns, strict=True)]

    by_run = [
        zip(
            figures(arm, replica),
            figures(arm, replica, "gd_") if beside else figures("gd", 0),
            strict=True,
        )
        for replica in sorted(recorded | {*range(should)})
    ]
    return [[End(found, descent) for found, descent in own] for own in zip(*by_run, strict=True)]


def log_sharpness(evidence: Evidence, arm: str) -> list[float]:
    """log(expected sharpness of the arm / of gradient descent), for every seed."""
    return _beside_descent(evidence, arm, lambda found: _log(found["sharpness"]))


def accuracy_gain(evidence: Evidence, arm: str) -> list[float]:
    """Test accuracy of the arm minus that of gradient descent, for every seed."""
    return _beside_descent(evidence, arm, lambda found: found["test_accuracy"])


def log_barrier(evidence: Evidence, arm: str) -> list[float]:
    """log₁₀ of the loss barrier between minimum and end over BARRIER, for every seed; reached or not."""

    def height(end: End) -> float:
        barrier = end.found["barrier"]
        return math.log10(max(barrier, LEAST_BARRIER) / BARRIER) if math.isfinite(barrier) else math.nan

    return [_mean([height(end) for end in own]) for own in ends(evidence, arm)]


def flatter(*arms: str) -> Judge:
    """Whether these end at flatter ground than gradient descent."""
    return _each(arms, log_sharpness, falls)


def leaves(*arms: str) -> Judge:
    """Whether these end beyond a barrier from the minimum they started at."""
    return _each(arms, log_barrier, functools.partial(exceeds, threshold=0.0))


def generalises(*arms: str) -> Judge:
    """Whether these end at a higher test accuracy than gradient descent."""
    return _each(arms, accuracy_gain, functools.partial(exceeds, threshold=0.0))


def flatter_than(*arms: str) -> Judge:
    """Whether SGD ends at flatter ground than these."""
    return _beside_sgd(arms, falls)


def as_flat_as_sgd(*arms: str) -> Judge:
    """Whether these and SGD end at equally flat ground, within SHARPNESS_FACTOR."""
    return _beside_sgd(arms, functools.partial(vanishes, margin=math.log(SHARPNESS_FACTOR)))


def _each(arms: Sequence[str], values: Values, rule: Rule) -> Judge:
    """One result for each of these arms that ran beside gradient descent."""

    def judge(evidence: Evidence) -> list[Result]:
        found = {arm: evidence.having(arm, "gd") for arm in arms}
        return [rule(values(own, arm), case=arm, veto=_veto(own, arm)) for arm, own in found.items() if own.seeds]

    return judge


def _beside_sgd(arms: Sequence[str], rule: Rule) -> Judge:
    """One result for each of these arms that ran beside SGD, on SGD's log sharpness minus the arm's."""

    def judge(evidence: Evidence) -> list[Result]:
        results = []
        for arm in arms:
            both = evidence.having(arm, "sgd", "gd")
            if both.seeds:
                columns = (log_sharpness(both, name) for name in ("sgd", arm))
                values = [one - other for one, other in zip(*columns, strict=True)]
                results.append(rule(values, case=f"sgd and {arm}", veto=_veto(both, "sgd", arm)))
        return results

    return judge


def _beside_descent(evidence: Evidence, arm: str, value: Callable[[Mapping[str, float]], float]) -> list[float]:
    """Mean over the runs of a seed of a value less gradient descent's; 0 for a run that has no place to compare."""
    return [
        _mean([value(end.found) - value(end.descent) if end.comparable else 0.0 for end in own])
        for own in ends(evidence, arm)
    ]


def _veto(evidence: Evidence, *arms: str) -> str | None:
    """What speaks against any verdict on these arms: runs that did not reach the loss, noise off its trace."""
    censored = [reason for arm in arms for reason in _censored(evidence, arm)]
    # SGD's noise is the one whose trace the others are given
    given = [arm for arm in arms if arm != "sgd"]
    return "; ".join(filter(None, (*censored, evidence.trace_veto("escape", *given)))) or None


def _censored(evidence: Evidence, arm: str) -> Iterator[str]:
    runs = [end for own in ends(evidence, arm) for end in own]
    missed = sum(not end.reached for end in runs)
    descents = sum(end.descent_missed for end in runs)
    if missed > CENSORED * len(runs):
        yield f"{missed} of {len(runs)} runs of {arm} did not reach the level of loss"
    if descents:
        yield f"gradient descent did not reach the level of loss beside {descents} of {len(runs)} runs of {arm}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
