"""Judges of the theory lab: each asks a law's run for one number of every seed, in every case that it names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from noisescape.experiments.claims.claim import Judge, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import STILL, exceeds, falls, lies_within, mapped, vanishes

Cases = Callable[[Mapping[str, Any]], list[str]]
"""The cases of a run, from its constants."""

Pairs = Callable[[Mapping[str, Any]], list[tuple[str, str, str]]]
"""(name, one case, another) of a run, from its constants."""
MIXED = 1.05
"""R̂ above this says that chains have not forgotten where they began."""


def value(evidence: Evidence, case: str, metric: str) -> list[float]:
    """The last value of a figure, one a seed; NaN where there is none."""
    found = evidence.curves_by("case", "metric").of(case, metric)
    return [curve[max(curve)] if curve else math.nan for curve in found]


def above(cases: Cases, metric: str, threshold: float) -> Judge:
    """Supported in a case if the figure's interval lies above the threshold."""
    return _each(cases, lambda evidence, case: exceeds(value(evidence, case, metric), threshold, case=case))


def within(cases: Cases, metric: str, least: float, most: float) -> Judge:
    """Supported in a case if the figure's interval lies between two values."""
    return _each(cases, lambda evidence, case: lies_within(value(evidence, case, metric), least, most, case=case))


def below(cases: Cases, metric: str, threshold: float) -> Judge:
    """Supported in a case if the figure's interval lies below the threshold."""

    def judge(evidence: Evidence, case: str) -> Result:
        beyond = falls([found - threshold for found in value(evidence, case, metric)], case=case)
        return mapped(beyond, lambda difference: difference + threshold)

    return _each(cases, judge)


def below_zero_if_mixed(cases: Cases, metric: str) -> Judge:
    """As :func:`below` of 0, undecided where chains do not agree or have found a lower minimum, in any seed."""

    def judge(evidence: Evidence, case: str) -> Result:
        r_hat, short = (max(value(evidence, case, name)) for name in ("r_hat", "shortfall"))
        reasons = (
            f"the chains do not agree: R̂ = {r_hat:.2f}, over {MIXED:g}" if r_hat > MIXED else None,
            f"chains went below the minimum: λ̂ is too low by {short:.2g} or more" if short > 0 else None,
        )
        veto = "; ".join(filter(None, reasons)) or None
        return falls(value(evidence, case, metric), case=case, veto=veto)

    return _each(cases, judge)


def near_zero(cases: Cases, metric: str, margin: float) -> Judge:
    """Supported in a case if the figure's interval lies within ±margin."""
    return _each(cases, lambda evidence, case: vanishes(value(evidence, case, metric), margin, case=case))


def log_below(case: str, metric: str, threshold: float) -> Judge:
    """Supported if a figure is below a threshold, by its logarithm."""
    return _one(case, lambda evidence: falls(_logs(evidence, case, metric, threshold), case=case))


def log_above(case: str, metric: str, threshold: float) -> Judge:
    """Supported if a figure is above a threshold, by its logarithm."""
    return _one(case, lambda evidence: exceeds(_logs(evidence, case, metric, threshold), 0.0, case=case))


def settled(cases: Cases, least: float, most: float) -> Judge:
    """As :func:`within`, of a run's last quarter; undecided where the quarter before was lower."""

    def judge(evidence: Evidence, case: str) -> Result:
        last, before = value(evidence, case, "settled"), value(evidence, case, "before")
        rise = sum(last) / sum(before) - 1
        veto = f"it still rose, by {rise:.0%} over the last quarter of the steps" if rise > STILL else None
        return lies_within(last, least, most, case=case, veto=veto)

    return _each(cases, judge)


def differing(cases: Cases, one: str, other: str) -> Judge:
    """Supported in a case if one figure's lead over another has its interval above 0."""

    def judge(evidence: Evidence, case: str) -> Result:
        pairs = zip(value(evidence, case, one), value(evidence, case, other), strict=True)
        return exceeds([first - second for first, second in pairs], 0.0, case=case)

    return _each(cases, judge)


def parted(pairs: Pairs, metric: str, least: float) -> Judge:
    """Supported if a figure is larger in one case than in another by more than ``least``; (name, one, other).

    Undecided where gradient descent itself would leave: ``over_descent`` of the first case is 1 or more.
    """

    def judged(evidence: Evidence) -> list[Result]:
        results = []
        for name, one, other in pairs(evidence.config):
            beyond = max(value(evidence, one, "over_descent"))
            veto = f"gradient descent leaves as well, at {beyond:.2f} times its own limit" if beyond >= 1 else None
            results.append(exceeds(_differences(evidence, one, other, metric), least, case=name, veto=veto))
        return results

    return judged


def between_sizes(pairs: Pairs, metric: str, margin: float) -> Judge:
    """Supported if a figure differs between two cases by less than ±margin; (name, one, other)."""
    return lambda evidence: [
        vanishes(_differences(evidence, one, other, metric), margin, case=name)
        for name, one, other in pairs(evidence.config)
    ]


def _differences(evidence: Evidence, one: str, other: str, metric: str) -> list[float]:
    both = zip(value(evidence, one, metric), value(evidence, other, metric), strict=True)
    return [first - second for first, second in both]


def _each(cases: Cases, judge: Callable[[Evidence, str], Result]) -> Judge:
    return lambda evidence: [judge(evidence, case) for case in cases(evidence.config)]


def _one(case: str, judge: Callable[[Evidence], Result]) -> Judge:
    return lambda evidence: [replace(judge(evidence), case=case)]


def _logs(evidence: Evidence, case: str, metric: str, threshold: float) -> list[float]:
    return [
        math.log10(found / threshold) if 0 < found < math.inf else math.inf if found == math.inf else math.nan
        for found in value(evidence, case, metric)
    ]
