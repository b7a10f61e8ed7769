"""Judges of the matched-loss runs: every arm at the same training loss, reached without noise.

In every seed an arm has one run or several that differ in their noise alone; its statistic in the seed is their
mean. Gradient descent's figures stand beside those of each run, as ``gd_sharpness`` say: it was taken to that run's
own loss. A run is censored if it, or gradient descent beside it, did not come down to its loss. It has nothing to
compare and is not left out either, since what gets stuck is not like the rest: it counts as one that came out as
gradient descent did (a log ratio or difference of 0), and too many of them are a veto. So does every run that
begins in a minimum that did not settle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
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
from noisescape.experiments.matched_loss import ARMS, OWN_NOISE

OTHER_ARMS = tuple(arm for arm in ARMS if arm not in ("gd", "sgd"))
"""All arms beside SGD that are compared with gradient descent."""
UNALIGNED = ("gld-dynamic", "gld-diagonal", "gld-shuffled", "gld-shuffled-within-layers")
"""Noises of SGD's trace that the paper says do not flatten, and those along shuffled directions."""
METRICS = ("reached", "sharpness", "test_accuracy", "barrier")

Values = Callable[[Evidence, str], list[float]]
Rule = Callable[..., Result]


@dataclass(frozen=True)
class End:
    """Where one run of an arm came to, and gradient descent at the same loss.

    Attributes:
        found: what was measured, by metric; NaN where it was not.
        descent: the same of gradient descent.
        settled: whether the minimum that it began in was at rest and stable.
    """

    found: Mapping[str, float]
    descent: Mapping[str, float]
    settled: bool

    @property
    def censored(self) -> bool:
        """Whether it or gradient descent did not come down to the level of loss, or began in no settled minimum."""
        return not (self.settled and self.found["reached"] == self.descent["reached"] == 1)


def ends(evidence: Evidence, arm: str) -> list[list[End]]:
    """The runs of an arm, for every seed: as many as it should have, those that left nothing included."""
    curves = evidence.curves_by("phase", "dynamics", "metric", "replica")
    step = int(evidence.config["steps"])
    recorded = {replica for phase, name, _, replica in curves.names if (phase, name) == ("matched", arm)}
    should = int(evidence.config["noise_seeds"]) if arm == "sgd" else 1

    def figures(replica: int, prefix: str) -> list[dict[str, float]]:
        columns = [curves.at(step, "matched", arm, prefix + metric, replica) for metric in METRICS]
        return [dict(zip(METRICS, row, strict=True)) for row in zip(*columns, strict=True)]

    settled = [1 in curve.values() for curve in evidence.curves.of("minimum", "gd", "settled")]
    by_run = [
        [End(*run) for run in zip(figures(replica, ""), figures(replica, "gd_"), settled, strict=True)]
        for replica in sorted(recorded | {*range(should)})
    ]
    return [[*own] for own in zip(*by_run, strict=True)]


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
    """Mean over the runs of a seed of a value less gradient descent's; 0 for those censored."""
    return [
        _mean([0.0 if end.censored else value(end.found) - value(end.descent) for end in own])
        for own in ends(evidence, arm)
    ]


def _veto(evidence: Evidence, *arms: str) -> str | None:
    """What speaks against any verdict on these arms: runs that did not reach the loss, noise off its trace."""
    censored = (_censored(evidence, arm) for arm in arms)
    # those with noise of their own are of its trace wherever they are; no other is given to them
    given = (arm for arm in arms if arm not in OWN_NOISE)
    return "; ".join(filter(None, (*censored, evidence.trace_veto("escape", *given)))) or None


def _censored(evidence: Evidence, arm: str) -> str | None:
    runs = [end.censored for own in ends(evidence, arm) for end in own]
    missed = runs.count(True)
    if missed <= CENSORED * len(runs):
        return None
    return (
        f"{missed} of {len(runs)} runs of {arm}, or gradient descent beside them, did not come down to their loss"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
