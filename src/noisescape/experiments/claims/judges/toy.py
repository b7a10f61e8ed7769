"""Judges of the two-dimensional toy."""

from __future__ import annotations

import itertools
import math

from noisescape.experiments.claims.claim import Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import same_rate, verdict
from noisescape.experiments.statistics import rate_difference


def order(evidence: Evidence) -> list[Result]:
    """Whether of any two dynamics the one with the larger Tr(HΣ) escapes more often."""
    rates = _rates(evidence, "published")
    pairs = [
        (more, less) for more, less in itertools.permutations(rates, 2) if rates[more][2] > 1.05 * rates[less][2]
    ]
    if not pairs:
        veto = "no two dynamics differ in Tr(HΣ)"
        return [Result("undecided", math.nan, math.nan, math.nan, 0, veto=veto)]
    differences = [
        (rate_difference(rates[more][:2], rates[less][:2], comparisons=len(pairs)), more, less)
        for more, less in pairs
    ]
    least, more, less = min(differences, key=lambda entry: entry[0].value)
    wrong = [f"{b} over {a}" for found, a, b in differences if found.high < 0]
    open_pairs = [f"{a} and {b}" for found, a, b in differences if found.low <= 0 <= found.high]
    remark = f"smallest between {more} and {less}"
    if open_pairs:
        remark += f"; not told apart: {', '.join(open_pairs)}"
    if wrong:
        remark += f"; against the order: {', '.join(wrong)}"
    decided = verdict(not wrong and not open_pairs, bool(wrong))
    case = f"{len(pairs)} pairs"
    return [Result(decided, least.value, least.low, least.high, rates[more][1], case, remark=remark)]


def turned_basin(evidence: Evidence) -> list[Result]:
    """Every noise in the turned basin against the same noise in the published one."""
    published, rotated = _rates(evidence, "published"), _rates(evidence, "rotated")
    return [
        same_rate(published[name][:2], rotated[name][:2], comparisons=len(rotated) - 1, case=name)
        for name in rotated
        if name != "gd"
    ]


def isotropic_basin(evidence: Evidence) -> list[Result]:
    """Every noise in the isotropic basin against constant noise there."""
    rates = _rates(evidence, "isotropic")
    names = [name for name in rates if name not in ("gd", "gld-constant")]
    return [
        same_rate(
            rates[name][:2],
            rates["gld-constant"][:2],
            comparisons=len(names),
            case=f"{name} and gld-constant",
        )
        for name in names
    ]


def _rates(evidence: Evidence, geometry: str) -> dict[str, tuple[int, int, float]]:
    """(successes, replicas, indicator) of every dynamics."""
    found = evidence.summary if geometry == "published" else evidence.summary["controls"].get(geometry)
    if found is None:
        return {}
    return {
        name: (round(rate["rate"] * rate["n"]), rate["n"], found["trace_h_sigma"][name]["value"])
        for name, rate in found["success"].items()
    }
