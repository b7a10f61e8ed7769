"""Judges of the networks' runs to a minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from noisescape.experiments.claims.claim import Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import ALIGNED, exceeds, mapped

# ---------------------------------------------------------------------- the indicator


def indicator_of_one_hidden_layer(evidence: Evidence) -> list[Result]:
    """Tr(HΣ) over its isotropic reference, for every optimiser and width."""
    curves = evidence.curves_by("metric", "optimiser", "width")
    results = []
    for metric, optimiser, width in curves.names:
        if metric != "anisotropy":
            continue
        by_seed = [[*curve.values()] for curve in curves.of(metric, optimiser, width)]
        values = [_mean_log(own) for own in by_seed]
        least = min((value for own in by_seed for value in own if value > 0), default=math.nan)
        found = exceeds(values, 0.0, case=f"{optimiser}, width {width}")
        results.append(_exponentiated(found, f"at least {least:.0f} at every epoch" if least > 1 else ""))
    return results


def indicator_along(evidence: Evidence) -> list[Result]:
    """Tr(HΣ) over its isotropic reference on the way to the minimum, and there."""
    values, least = [], math.inf
    end = int(evidence.config["gd_steps"])

    def whole(metric: str) -> list[dict[int, float]]:
        last = evidence.curves.at(end, "minimum", "gd", metric)
        way = evidence.curves.of("descent", "gd", f"along/{metric}")
        return [{**curve, end: value} for curve, value in zip(way, last, strict=True)]

    for indicator, reference in zip(whole("trace_h_sigma"), whole("isotropic_reference"), strict=True):
        # where TrH is not positive there is no isotropic reference to exceed
        ratios = [indicator[step] / reference[step] for step in indicator if reference[step] > 0]
        values.append(_mean_log(ratios))
        least = min([least, *ratios])
    note = f"at least {least:.0f} at every step measured" if math.isfinite(least) else ""
    return [_exponentiated(exceeds(values, 0.0), note)]


def ill_conditioned(evidence: Evidence) -> list[Result]:
    """Whether the decay exponent exceeds ½ at the run's k, and at the best measured k where that is known."""
    k = evidence.config.get("k", 20)
    results = [exceeds(_at_minimum(evidence, "decay_exponent"), 0.5, case=f"k = {k}")]
    best = _at_minimum(evidence, "decay_exponent_best")
    if any(map(math.isfinite, best)):
        results.append(replace(exceeds(best, 0.5, case="best k"), remark=_guarantee(evidence, best)))
    return results


def aligned(evidence: Evidence) -> list[Result]:
    """Whether the projection coefficient is bounded away from 0: its geometric mean, for it is skewed."""
    coefficients = _at_minimum(evidence, "projection_coefficient")
    negative = sum(value <= 0 for value in coefficients)
    veto = f"a is not positive in {negative} of {len(coefficients)} seeds" if negative else None
    logs = [math.log(value) if value > 0 else math.nan for value in coefficients]
    return [_exponentiated(exceeds(logs, math.log(ALIGNED), veto=veto))]


def _at_minimum(evidence: Evidence, metric: str) -> list[float]:
    return evidence.curves.at(int(evidence.config["gd_steps"]), "minimum", "gd", metric)


def _guarantee(evidence: Evidence, exponents: Sequence[float]) -> str:
    """The best k, and a·D^{2d−1}, the order of Tr(HΣ)/Tr(HΣ̄) that the conditions guarantee there."""
    metrics = ("decay_exponent_best_k", "projection_coefficient", "trace_h", "trace_sigma", "isotropic_reference")
    rows = zip(exponents, *(_at_minimum(evidence, metric) for metric in metrics), strict=True)
    # the reference is TrH·TrΣ/D
    found = [
        (k, a * (trace_h * trace_sigma / reference) ** (2 * d - 1))
        for d, k, a, trace_h, trace_sigma, reference in rows
        if all(map(math.isfinite, (d, k, a, trace_h, trace_sigma))) and reference > 0 and trace_h > 0
    ]
    if not found:
        return ""
    (least_k, most_k), (least, most) = ((min(column), max(column)) for column in zip(*found, strict=True))
    return f"k = {least_k:.0f} to {most_k:.0f}; a·D^(2d−1) = {least:.3g} to {most:.3g}"


def _mean_log(values: Sequence[float]) -> float:
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return sum(logs) / len(logs) if logs else math.nan


def _exponentiated(found: Result, remark: str = "") -> Result:
    def exp(value: float) -> float:
        return math.exp(value) if value < 700 else math.inf

    return replace(mapped(found, exp), remark=remark)
