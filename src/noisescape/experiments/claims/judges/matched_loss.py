"""Judges of the matched-loss runs: every arm at the same training loss, reached without noise.

In every seed an arm has one run or several that differ in their noise alone; its statistic in the seed is their
mean. A run that did not reach the loss has no place to compare, and is not left out either: those that get stuck
are not the same as the others. It counts as a run that came out as gradient descent did (the log ratio or the
difference is 0), and too many of them are a veto.
"""

from __future__ import annotations

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
from noisescape.experiments.constants import DYNAMICS, NOISELESS

OTHER_ARMS = tuple(name for name in DYNAMICS if name not in ("gd", "sgd"))
"""All arms beside SGD that are compared with gradient descent."""
UNALIGNED = ("gld-constant", "gld-dynamic", "gld-diagonal", "gld-shuffled")
"""Noises of SGD's trace that do not know the directions of the curvature."""

Values = Callable[[Evidence, str], list[float]]
Rule = Callable[..., Result]


@dataclass(frozen=True)
class End:
    """Where one run of an arm came to.

    Attributes:
        reached: whether it came down to the seed's level of loss.
        found: what was measured there, by metric; NaN where it was not.
    """

    reached: bool
    found: Mapping[str, float]


def ends(evidence: Evidence, arm: str) -> list[list[End]]:
    """The runs of an arm, for every seed: as many as it should have, those that left nothing included."""
    should = 1 if arm in NOISELESS else int(evidence.config["noise_seeds"])
    curves = evidence.curves_by("phase", "dynamics", "metric", "replica")
    step = int(evidence.config["steps"])
    replicas = {name[3] for name in curves.names if name[:2] == ("matched", arm)} | set(range(should))

    def of(metric: str, replica: int) -> list[float]:
        return curves.at(step, "matched", arm, metric, replica)

    metrics = ("reached", "sharpness", "test_accuracy", "barrier")
    by_replica = [zip(*(of(metric, replica) for metric in metrics), strict=True) for replica in sorted(replicas)]
    return [
        [End(row[0] == 1, dict(zip(metrics, row, strict=True))) for row in rows]
        for rows in zip(*by_replica, strict=True)
    ]


def log_sharpness(evidence: Evidence, arm: str) -> list[float]:
    """log(expected sharpness of the arm / of gradient descent), for every seed."""
    return _beside_descent(evidence, arm, lambda end: _log(end.found["sharpness"]))


def accuracy_gain(evidence: Evidence, arm: str) -> list[float]:
    """Test accuracy of the arm minus that of gradient descent, for every seed."""
    return _beside_descent(evidence, arm, lambda end: end.found["test_accuracy"])


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
    return _each(arms, log_barrier, _above)


def generalises(*arms: str) -> Judge:
    """Whether these end at a higher test accuracy than gradient descent."""
    return _each(arms, accuracy_gain, _above)


def flatter_than(*arms: str) -> Judge:
    """Whether SGD ends at flatter ground than these."""
    return _beside_sgd(arms, falls)


def as_flat_as_sgd(*arms: str) -> Judge:
    """Whether these and SGD end at equally flat ground, within SHARPNESS_FACTOR."""

    def rule(values: Sequence[float], **said: str | None) -> Result:
        return vanishes(values, math.log(SHARPNESS_FACTOR), **said)  # type: ignore[arg-type]

    return _beside_sgd(arms, rule)


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


def _above(values: Sequence[float], *, case: str, veto: str | None) -> Result:
    return exceeds(values, 0.0, case=case, veto=veto)


def _beside_descent(evidence: Evidence, arm: str, value: Callable[[End], float]) -> list[float]:
    """Mean over the runs of a seed of a value less gradient descent's; 0 for a run that has no place to compare."""
    return [
        _mean([value(end) - value(base) if end.reached and base.reached else 0.0 for end in own])
        for own, (base, *_) in zip(ends(evidence, arm), ends(evidence, "gd"), strict=True)
    ]


def _veto(evidence: Evidence, *arms: str) -> str | None:
    """What speaks against any verdict on these arms: runs that did not reach the loss, noise off its trace."""
    reasons = [_censored(evidence, arm) for arm in ("gd", *arms)]
    return "; ".join(filter(None, (*reasons, evidence.trace_veto("escape", *arms)))) or None


def _censored(evidence: Evidence, arm: str) -> str | None:
    runs = [end.reached for own in ends(evidence, arm) for end in own]
    missed, allowed = runs.count(False), 0.0 if arm == "gd" else CENSORED * len(runs)
    return f"{missed} of {len(runs)} runs of {arm} did not reach the level of loss" if missed > allowed else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
