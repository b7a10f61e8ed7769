"""Judge of the runs on the sharpness of gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from noisescape.experiments.claims.claim import Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import EDGE, STILL, lies_within


def settles_at_edge(evidence: Evidence) -> list[Result]:
    """Whether λ₁·η/2 is at the edge at the last step, for every rate that is expected to get there.

    A run whose λ₁ still rises has not settled anywhere: no verdict.
    """
    config, curves = evidence.config, evidence.curves_by("rate", "metric")
    steps = int(config["steps"])
    results = []
    for rate in config["rates"]:
        if rate >= config["edge_from"]:
            found = curves.of(rate, "largest_eigenvalue")
            ends = [rate * curve.get(steps, math.nan) / 2 for curve in found]
            results.append(lies_within(ends, *EDGE, case=f"η = {rate:g}", veto=_rising(found, steps)))
    return results


def _rising(curves: Sequence[Mapping[int, float]], steps: int) -> str | None:
    """Why λ₁ is not shown to have settled: it rose by more than STILL over the last quarter of the steps."""
    befores, afters = [], []
    for curve in curves:
        before = [value for step, value in curve.items() if 0.5 * steps <= step <= 0.75 * steps]
        if not before:
            return "λ₁ was not measured often enough to show that it had settled"
        befores.append(before[-1])
        afters.append(curve.get(steps, math.nan))
    rise = sum(afters) / sum(befores) - 1
    return f"λ₁ still rose, by {rise:.0%} over the last quarter of the steps" if rise > STILL else None
