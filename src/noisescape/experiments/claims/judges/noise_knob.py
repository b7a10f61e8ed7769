"""Judges of the noise-knob runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from noisescape.experiments.claims.claim import Judge, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import CLOSE_ACCURACY, SAME_NOISE, exceeds, falls, vanishes

PHASE = "training"
GAP = ("large-batch", "small-batch")
NO_GAP = "the small batch is not shown to generalise better than the large one: there is no gap to recover"


def knob_trace(evidence: Evidence) -> list[Result]:
    """Whether the noise injected under the knob has the small batch's trace, exact at the same parameters."""
    own = evidence.having("as-if-small")
    if not own.seeds:
        return []
    return [vanishes([ratio.value - 1 for ratio in own.trace_ratio(PHASE, "as-if-small")], SAME_NOISE)]


def gap(evidence: Evidence) -> list[Result]:
    """Whether the small batch ends at a higher test accuracy than the large one."""
    return _gain(evidence, "small-batch", "large-batch")


def knob_over_large(evidence: Evidence) -> list[Result]:
    """Whether the knob raises the large batch's test accuracy."""
    return _gain(evidence, "as-if-small", "large-batch")


def knob_as_small(evidence: Evidence) -> list[Result]:
    """Whether under the knob the large batch ends at the small one's test accuracy."""
    own = evidence.having("as-if-small", *GAP)
    if not own.seeds:
        return []
    values = _differences(own, "as-if-small", {"small-batch": 1.0})
    return [vanishes(values, CLOSE_ACCURACY, veto=_veto(own, "as-if-small"))]


def recovers(arm: str) -> Judge:
    """Whether an arm makes up for more than half of the gap between large and small batch."""
    return _against_half(arm, lambda values, veto: exceeds(values, 0.0, veto=veto))


def does_not_recover(arm: str) -> Judge:
    """Whether an arm makes up for less than half of it."""
    return _against_half(arm, lambda values, veto: falls(values, veto=veto))


def _against_half(arm: str, rule: Callable[[list[float], str | None], Result]) -> Judge:
    def judge(evidence: Evidence) -> list[Result]:
        own = evidence.having(arm, *GAP)
        if not own.seeds:
            return []
        values = _differences(own, arm, {"large-batch": 0.5, "small-batch": 0.5})
        return [rule(values, _veto(own, arm))]

    return judge


def _gain(evidence: Evidence, one: str, other: str) -> list[Result]:
    """The rule for a gain in test accuracy; the noise of an arm that is to have the small batch's must have it."""
    both = evidence.having(one, other)
    if not both.seeds:
        return []
    veto = both.trace_veto(PHASE, one) if one == "as-if-small" else None
    return [exceeds(_differences(both, one, {other: 1.0}), 0.0, veto=veto)]


def _differences(evidence: Evidence, arm: str, base: dict[str, float]) -> list[float]:
    """Test accuracy at the last step less a weighted mean of others', for every seed."""
    own = evidence.last(PHASE, arm, "test_accuracy")
    others = zip(*(evidence.last(PHASE, name, "test_accuracy") for name in base), strict=True)
    return [
        value - sum(weight * one for weight, one in zip(base.values(), row, strict=True))
        for value, row in zip(own, others, strict=True)
    ]


def _veto(evidence: Evidence, arm: str) -> str | None:
    """What speaks against any verdict on how much of the gap an arm recovers."""
    reasons: Iterable[str | None] = (
        # the penalty adds no noise
        None if arm == "gradient-penalty" else evidence.trace_veto(PHASE, arm),
        None if gap(evidence)[0].verdict == "supported" else NO_GAP,
    )
    return "; ".join(filter(None, reasons)) or None
