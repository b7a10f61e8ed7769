"""The verdicts on the primary claims: looks at growing data, and one error for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from scipy.special import stdtrit

from noisescape.experiments.claims.claim import Claim, Look, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.group_sequential import ALPHA, Decision, SequentialTest, boundaries, holm


def primary_results(claims: Sequence[Claim], evidence: Evidence) -> dict[Claim, Result]:
    """Every claim of the family that the seeds say something of, judged at its looks with one error for the family.

    A claim is judged at each look by the first seeds of its plan alone, vetoes included, so that what a look found
    stands whatever is run later or kept besides. The family is all of ``claims``, also those without data: what
    was not run frees no error.
    """
    seeds = {claim: _planned(claim, evidence.having(*claim.compares)) for claim in claims}
    taken = {
        claim: [claim.judge(own.first(n))[0] for n in claim.looks if n <= _first_gap(claim, own)]
        for claim, own in seeds.items()
    }
    tests = [
        SequentialTest(claim.looks, tuple(1.0 if found.veto else found.p for found in taken[claim]))
        for claim in claims
    ]
    decided = dict(zip(claims, holm(tests, ALPHA), strict=True))
    return {
        claim: _result(claim, own.seeds, claim.judge(own)[0], taken[claim], decided[claim])
        for claim, own in seeds.items()
        if own.seeds
    }


def _planned(claim: Claim, evidence: Evidence) -> Evidence:
    """The seeds of the claim's plan; all of them where none is of it."""
    planned = {*_order(claim)}
    among = [place in planned for place in evidence.places]
    return evidence.where(among) if any(among) else evidence


def _first_gap(claim: Claim, evidence: Evidence) -> int:
    """How many seeds come before the first one of the plan that is not there."""
    order, there = _order(claim), {*evidence.places}
    if not there & {*order}:
        return evidence.seeds
    return next((count for count, place in enumerate(order) if place not in there), len(order))


def _order(claim: Claim) -> list[tuple[int, int]]:
    return [(root, repetition) for root, count in claim.plan for repetition in range(count)]


def _result(claim: Claim, seeds: int, by_all: Result, taken: Sequence[Result], decision: Decision) -> Result:
    """The result of the look that decided, or else of the last one; before the first, all seeds and no verdict."""
    if not taken:
        early = f"{seeds} of {claim.looks[0]} seeds: before the first look"
        if seeds >= claim.looks[0]:
            early = f"{seeds} seeds, not the first {claim.looks[0]} of the plan: before the first look"
        return replace(by_all, verdict="undecided", veto="; ".join(filter(None, (early, by_all.veto))))
    bounds = boundaries(claim.looks, decision.level)
    looks = tuple(_look(found, bound) for found, bound in zip(taken, bounds, strict=False))
    index = len(taken) - 1 if decision.crossed is None else decision.crossed
    judged, look = taken[index], looks[index]
    beyond = (
        f"all {seeds} seeds: {claim.shown(by_all.effect, by_all.low, by_all.high)}"
        if seeds > claim.looks[index]
        else ""
    )
    return replace(
        judged,
        # a boundary is at most 0.05, so where p lies below it the look's own verdict says in which direction
        verdict="undecided" if decision.crossed is None else judged.verdict,
        low=look.low,
        high=look.high,
        remark="; ".join(filter(None, (judged.remark, beyond))),
        looks=looks,
    )


def _look(found: Result, boundary: float) -> Look:
    """A look beside its boundary, its interval at the level of that."""
    dof = found.n - 1
    # from one level to another an interval's half width goes with Student's quantile
    half = (found.high - found.effect) * float(stdtrit(dof, 1 - boundary / 2) / stdtrit(dof, 1 - ALPHA / 2))
    if found.low == found.high and found.p >= boundary:  # no spread, and too few for a sign test at that level
        half = math.inf
    crossed = found.veto is None and found.p < boundary
    return Look(
        found.n, found.effect, found.effect - half, found.effect + half, found.p, boundary, crossed, found.veto
    )
