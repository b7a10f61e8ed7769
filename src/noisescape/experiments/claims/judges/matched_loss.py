"""Judges of the matched-loss runs: every arm beside gradient descent at the same training loss.

An arm's statistic in a seed is the mean over its noise seeds. A censored run has nothing to compare and is not
left out either, since what gets stuck is not like the rest: a difference with it counts as 0, which supports no
claim that something differs, and too many are a veto. A claim that nothing differs has no verdict where any is
censored. A run that begins in a minimum that did not settle is censored.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

from noisescape.experiments import matched_ends
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
from noisescape.experiments.matched_ends import End
from noisescape.experiments.matched_loss import ARMS, OWN_NOISE

OTHER_ARMS = tuple(arm for arm in ARMS if arm not in ("gd", "sgd"))
"""All arms beside SGD that are compared with gradient descent."""
UNALIGNED = ("gld-dynamic", "gld-diagonal", "gld-shuffled", "gld-shuffled-within-layers")
"""Noises of SGD's trace that the paper says do not flatten, and those along shuffled directions."""

Values = Callable[[Evidence, str], list[float]]
Rule = Callable[..., Result]


def log_sharpness(evidence: Evidence, arm: str) -> list[float]:
    """log(expected sharpness of the arm / of gradient descent), for every seed."""
    return _beside_descent(evidence, arm, lambda end: end.log_sharpness)


def accuracy_gain(evidence: Evidence, arm: str) -> list[float]:
    """Test accuracy of the arm minus that of gradient descent, for every seed."""
    return _beside_descent(evidence, arm, lambda end: end.accuracy_gain)


def log_barrier(evidence: Evidence, arm: str) -> list[float]:
    """log₁₀ of the loss barrier between minimum and end over BARRIER, for every seed; reached or not."""

    def height(end: End) -> float:
        known = math.isfinite(end.barrier)
        return math.log10(max(end.barrier, LEAST_BARRIER) / BARRIER) if known else math.nan

    return [_mean([height(end) for end in own]) for own in _ends(evidence, arm)]


def flatter(*arms: str) -> Judge:
    """Whether these end at flatter ground than gradient descent."""
    return _each(arms, log_sharpness, falls)


def flatter_on_the_layers_scale(*arms: str) -> Judge:
    """The same by layer-relative sharpness, of the seeds in which it was measured: earlier runs have none."""

    def judge(evidence: Evidence) -> list[Result]:
        results = []
        for arm in arms:
            both = evidence.having(arm, "gd")
            measured = both.where([*map(bool, both.curves.of("minimum", "gd", "relative_sharpness"))])
            if measured.seeds:
                values = _beside_descent(measured, arm, lambda end: end.log_relative_sharpness)
                results.append(falls(values, case=arm, veto=_veto(measured, arm)))
        return results

    return judge


def leaves(*arms: str) -> Judge:
    """Whether these end beyond a barrier from the minimum they started at."""
    return _each(arms, log_barrier, functools.partial(exceeds, threshold=0.0))


def generalises(*arms: str) -> Judge:
    """Whether these end at a higher test accuracy than gradient descent."""
    return _each(arms, accuracy_gain, functools.partial(exceeds, threshold=0.0))


def flatter_than(*arms: str) -> Judge:
    """Whether SGD ends at flatter ground than these."""
    return _beside_sgd(arms, falls, CENSORED)


def as_flat_as_sgd(*arms: str) -> Judge:
    """Whether these and SGD end at equally flat ground, within SHARPNESS_FACTOR."""
    return _beside_sgd(arms, functools.partial(vanishes, margin=math.log(SHARPNESS_FACTOR)), 0.0)


def _each(arms: Sequence[str], values: Values, rule: Rule) -> Judge:
    """One result for each of these arms that ran beside gradient descent."""

    def judge(evidence: Evidence) -> list[Result]:
        found = {arm: evidence.having(arm, "gd") for arm in arms}
        return [rule(values(own, arm), case=arm, veto=_veto(own, arm)) for arm, own in found.items() if own.seeds]

    return judge


def _beside_sgd(arms: Sequence[str], rule: Rule, allowed: float) -> Judge:
    """One result for each of these arms that ran beside SGD, on SGD's log sharpness minus the arm's."""

    def judge(evidence: Evidence) -> list[Result]:
        results = []
        for arm in arms:
            both = evidence.having(arm, "sgd", "gd")
            if both.seeds:
                pairs = zip(_ends(both, "sgd"), _ends(both, arm), strict=True)
                values = [_mean([_flatter_by(*pair) for pair in itertools.product(*own)]) for own in pairs]
                results.append(rule(values, case=f"sgd and {arm}", veto=_veto(both, "sgd", arm, allowed=allowed)))
        return results

    return judge


def _flatter_by(one: End, other: End) -> float:
    """Log sharpness of one less the other's, each beside gradient descent's at its loss; 0 if one is censored."""
    return 0.0 if one.censored or other.censored else one.log_sharpness - other.log_sharpness


def _beside_descent(evidence: Evidence, arm: str, statistic: Callable[[End], float]) -> list[float]:
    """Mean of a statistic over the runs of a seed; 0 for those censored."""
    return [_mean([0.0 if end.censored else statistic(end) for end in own]) for own in _ends(evidence, arm)]


def _ends(evidence: Evidence, arm: str) -> list[list[End]]:
    return matched_ends.ends(evidence.curves_by(*matched_ends.COLUMNS), evidence.config, arm)


def _veto(evidence: Evidence, *arms: str, allowed: float = CENSORED) -> str | None:
    """What speaks against any verdict on these arms: runs that did not reach the loss, noise off its trace."""
    censored = (_censored(evidence, arm, allowed) for arm in arms)
    # those with noise of their own are of its trace wherever they are; no other is given to them
    given = (arm for arm in arms if arm not in OWN_NOISE)
    return "; ".join(filter(None, (*censored, evidence.trace_veto("escape", *given)))) or None


def _censored(evidence: Evidence, arm: str, allowed: float) -> str | None:
    runs = [end for own in _ends(evidence, arm) for end in own]
    unsettled = sum(not end.settled for end in runs)
    missed = sum(end.settled and end.censored for end in runs)
    if unsettled + missed <= allowed * len(runs):
        return None
    reasons = (
        f"{missed} of {len(runs)} runs of {arm}, or gradient descent beside them, did not come down to their loss"
        if missed
        else None,
        f"{unsettled} of {len(runs)} runs of {arm} began in a minimum that did not settle" if unsettled else None,
    )
    return "; ".join(filter(None, reasons))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
