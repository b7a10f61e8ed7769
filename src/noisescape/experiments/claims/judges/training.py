"""Judges of training from initialisation: at the last step, or at one training loss where the run has a level.

At a level all dynamics of a seed are compared at exactly one loss. What diverged or did not come down to it is
censored: it has nothing to compare and is not left out either, since what gets stuck is not like the rest. A
difference with it counts as 0, which supports no claim that something differs, and too many are a veto. A claim
that nothing differs has no verdict where any is censored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from noisescape.experiments.claims.claim import Judge, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import CENSORED, SAME_ACCURACY, exceeds, falls, mapped, vanishes
from noisescape.experiments.statistics import fisher_z, rank_correlation, seeds_for

POINT = 0.01
"""A point of test accuracy, of which the remarks say how many seeds would find it."""
FIGURES = ("sharpness", "test_accuracy")
AT_THE_END = {"sharpness": "sharpness/signed"}
"""What a metric is called at the last step, where that is not its name at a level."""


def accuracy_order(evidence: Evidence) -> list[Result]:
    """Whether SGD ends at a higher test accuracy than diagonal noise, and that than isotropic noise."""
    pairs = (("sgd", "gld-diagonal"), ("gld-diagonal", "gld-dynamic"), ("gld-diagonal", "gld-constant"))
    return _accuracy_gains(evidence, pairs, "over", functools.partial(exceeds, threshold=0.0), CENSORED)


def accuracy_same(*pairs: tuple[str, str]) -> Judge:
    """Whether both of each pair end at the same test accuracy."""

    def judge(evidence: Evidence) -> list[Result]:
        return _accuracy_gains(evidence, pairs, "and", functools.partial(vanishes, margin=SAME_ACCURACY), 0.0)

    return judge


def flatter(*arms: str) -> Judge:
    """Whether these end at flatter ground than gradient descent; nothing of runs without a level."""

    def judge(evidence: Evidence) -> list[Result]:
        results = []
        for arm in arms:
            both = evidence.having(arm, "gd")
            if both.seeds and _at_a_level(evidence):
                values = _differences(both, "sharpness", arm, "gd", _log)
                results.append(falls(values, case=f"{arm} and gd", veto=_veto(both, CENSORED, arm, "gd")))
        return results

    return judge


def flatter_generalises(evidence: Evidence) -> list[Result]:
    """Whether over the dynamics a lower sharpness goes with a higher test accuracy; judged by Fisher's z."""
    names = dict.fromkeys(name for ran in evidence.dynamics for name in ran)
    sharpness, accuracy = ({name: _ends(evidence, name, metric) for name in names} for metric in FIGURES)
    missed = {name: _censored(evidence, name) for name in names}
    values = []
    for seed, ran in enumerate(evidence.dynamics):
        if any(missed[name][seed] for name in ran):
            values.append(0.0)
            continue
        pairs = [(sharpness[name][seed], accuracy[name][seed]) for name in ran]
        values.append(fisher_z(rank_correlation(*zip(*pairs, strict=True)), len(pairs)))
    return [mapped(falls(values, veto=_too_many(evidence, CENSORED, *names)), math.tanh)]


def _accuracy_gains(
    evidence: Evidence,
    pairs: Sequence[tuple[str, str]],
    joint: str,
    rule: Callable[..., Result],
    allowed: float,
) -> list[Result]:
    """One result for each pair that ran, on the first one's test accuracy less the second's."""
    results = []
    for one, other in pairs:
        both = evidence.having(one, other)
        if both.seeds:
            gains = _differences(both, "test_accuracy", one, other, float)
            found = rule(gains, case=f"{one} {joint} {other}", veto=_veto(both, allowed, one, other))
            if _at_a_level(both):
                missed = zip(*(_censored(both, name) for name in (one, other)), strict=True)
                compared = [gain for gain, either in zip(gains, missed, strict=True) if not any(either)]
                found = replace(found, remark=_needed(compared))
            results.append(found)
    return results


def _differences(
    evidence: Evidence, metric: str, one: str, other: str, scale: Callable[[float], float]
) -> list[float]:
    """A metric of one less that of another, for every seed; 0 where either is censored."""
    censored = zip(*(_censored(evidence, name) for name in (one, other)), strict=True)
    ends = zip(*(_ends(evidence, name, metric) for name in (one, other)), strict=True)
    return [
        0.0 if any(missed) else scale(first) - scale(second)
        for missed, (first, second) in zip(censored, ends, strict=True)
    ]


def _ends(evidence: Evidence, name: str, metric: str) -> list[float]:
    """A metric of a dynamics where it is compared, for every seed."""
    if _at_a_level(evidence):
        return evidence.last("matched", name, metric)
    return evidence.last("training", name, AT_THE_END.get(metric, metric))


def _censored(evidence: Evidence, name: str) -> list[bool]:
    """Whether it did not come down to the level, for every seed; at the last step nothing is."""
    if not _at_a_level(evidence):
        return [False] * evidence.seeds
    ran = [name in dynamics for dynamics in evidence.dynamics]
    reached = evidence.last("matched", name, "reached")
    return [here and value != 1 for here, value in zip(ran, reached, strict=True)]


def _at_a_level(evidence: Evidence) -> bool:
    return evidence.config.get("level") is not None  # earlier runs know of none


def _veto(evidence: Evidence, allowed: float, *names: str) -> str | None:
    """What speaks against any verdict on these: too many censored, noise not shown to be of its trace."""
    reasons = (_too_many(evidence, allowed, *names), evidence.trace_veto("training", *names))
    return "; ".join(filter(None, reasons)) or None


def _too_many(evidence: Evidence, allowed: float, *names: str) -> str | None:
    reasons = []
    for name in names:
        missed, seeds = sum(_censored(evidence, name)), evidence.having(name).seeds
        if missed > allowed * seeds:
            reasons.append(f"{name} did not come down to the training loss in {missed} of {seeds} seeds")
    return "; ".join(reasons) or None


def _needed(gains: Sequence[float]) -> str:
    """The standard deviation of the differences, and the seeds that would find one point of accuracy."""
    known = [value for value in gains if math.isfinite(value)]
    if len(known) < 2:
        return ""
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    seeds = seeds_for(POINT, deviation)
    return f"standard deviation {100 * deviation:.1f} points: {seeds:,} seeds find one point with a power of 80 %"


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
