"""Judges of the networks' runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from noisescape.experiments.claims.claim import Judge, Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import SAME_ACCURACY, SAME_LOSS, SAME_SHARPNESS, exceeds, falls, vanishes
from noisescape.experiments.curves import Curves
from noisescape.experiments.statistics import rank_correlation

FLATTENING = ("sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector")
NOT_FLATTENING = ("gld-constant", "gld-dynamic", "gld-diagonal")


# ---------------------------------------------------------------------- the indicator


def indicator_of_one_hidden_layer(evidence: Evidence) -> list[Result]:
    """Tr(HΣ) over its isotropic reference, for every optimiser and width."""
    curves = Curves(evidence.run.metrics().to_pylist(), evidence.seeds, by=("metric", "optimiser", "width"))
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


def at_minimum(metric: str, threshold: float) -> Judge:
    """Whether what was measured at the minimum exceeds a threshold."""

    def judge(evidence: Evidence) -> list[Result]:
        return [exceeds(evidence.curves.at(int(evidence.config["gd_steps"]), "minimum", "gd", metric), threshold)]

    return judge


def _mean_log(values: Sequence[float]) -> float:
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return sum(logs) / len(logs) if logs else math.nan


def _exponentiated(found: Result, remark: str) -> Result:
    def exp(value: float) -> float:
        return math.exp(value) if value < 700 else math.inf

    return replace(found, effect=exp(found.effect), low=exp(found.low), high=exp(found.high), remark=remark)


# ---------------------------------------------------------------------- leaving the minimum


def escapes(*names: str) -> Judge:
    """Whether these noises raise the training loss above that of gradient descent."""
    return _beside_descent(names, _excess_loss, functools.partial(exceeds, threshold=0.0))


def stays(*names: str) -> Judge:
    """Whether they keep it where gradient descent has it."""
    return _beside_descent(names, _excess_loss, functools.partial(vanishes, margin=SAME_LOSS))


def flatter(*names: str) -> Judge:
    """Whether these noises find ground less sharp than gradient descent does."""
    return _beside_descent(names, _relative_sharpness, falls)


def not_flatter(*names: str) -> Judge:
    """Whether they do not, but for a margin."""
    return _beside_descent(names, _relative_sharpness, functools.partial(exceeds, threshold=-SAME_SHARPNESS))


def full_as_sgd(evidence: Evidence) -> list[Result]:
    """Whether Gaussian noise with the full covariance flattens as SGD does."""
    if not all(map(evidence.ran, ("gld-full", "sgd", "gd"))):
        return []
    changes = zip(_relative_sharpness(evidence, "gld-full"), _relative_sharpness(evidence, "sgd"), strict=True)
    veto = evidence.trace_veto("escape", "gld-full", "sgd")
    return [vanishes([full - sgd for full, sgd in changes], SAME_SHARPNESS, veto=veto)]


def accuracy_follows(evidence: Evidence) -> list[Result]:
    """Whether the noises that flatten end at a higher test accuracy than the others."""
    groups = [[name for name in group if evidence.ran(name)] for group in (FLATTENING, NOT_FLATTENING)]
    if not all(groups):
        return []

    def mean_accuracy(names: Sequence[str]) -> Iterator[float]:
        columns = [evidence.last("escape", name, "test_accuracy") for name in names]
        return (sum(own) / len(own) for own in zip(*columns, strict=True))

    aligned, other = map(mean_accuracy, groups)
    veto = evidence.trace_veto("escape", *groups[0], *groups[1])
    return [exceeds([a - b for a, b in zip(aligned, other, strict=True)], 0.0, veto=veto)]


def _beside_descent(
    names: Sequence[str], statistic: Callable[[Evidence, str], list[float]], rule: Callable[..., Result]
) -> Judge:
    """One result for each of these dynamics that ran beside gradient descent."""

    def judge(evidence: Evidence) -> list[Result]:
        return [
            rule(statistic(evidence, name), case=name, veto=evidence.trace_veto("escape", name))
            for name in names
            if evidence.ran(name) and evidence.ran("gd")
        ]

    return judge


def _excess_loss(evidence: Evidence, dynamics: str) -> list[float]:
    """Mean over the recorded steps of the training loss above that of gradient descent, for every seed."""
    values = []
    for own, base in zip(*(evidence.curves.of("escape", name, "loss") for name in (dynamics, "gd")), strict=True):
        common = [step for step in base if step > 0]
        values.append(sum(own.get(step, math.nan) - base[step] for step in common) / len(common))
    return values


def _relative_sharpness(evidence: Evidence, dynamics: str) -> list[float]:
    """Expected sharpness over that of gradient descent, less 1, both means over the last half; for every seed."""
    half = int(evidence.config["steps"]) / 2

    def late(name: str) -> Iterator[float]:
        for curve in evidence.curves.of("escape", name, "sharpness/signed"):
            values = [value for step, value in curve.items() if step >= half]
            yield sum(values) / len(values) if values else math.nan

    return [own / base - 1 if base > 0 else math.nan for own, base in zip(late(dynamics), late("gd"), strict=True)]


# ---------------------------------------------------------------------- training from initialisation


def accuracy_order(evidence: Evidence) -> list[Result]:
    """Whether SGD ends at a higher test accuracy than diagonal noise, and that than isotropic noise."""
    pairs = (("sgd", "gld-diagonal"), ("gld-diagonal", "gld-dynamic"), ("gld-diagonal", "gld-constant"))
    return _accuracy_gains(evidence, pairs, "over", functools.partial(exceeds, threshold=0.0))


def accuracy_same(*pairs: tuple[str, str]) -> Judge:
    """Whether both of each pair end at the same test accuracy."""

    def judge(evidence: Evidence) -> list[Result]:
        return _accuracy_gains(evidence, pairs, "and", functools.partial(vanishes, margin=SAME_ACCURACY))

    return judge


def flatter_generalises(evidence: Evidence) -> list[Result]:
    """Whether over the dynamics a lower sharpness goes with a higher test accuracy."""
    names = evidence.config["dynamics"]
    sharpness = [evidence.last("training", name, "sharpness/signed") for name in names]
    accuracy = [evidence.last("training", name, "test_accuracy") for name in names]
    by_seed = zip(zip(*sharpness, strict=True), zip(*accuracy, strict=True), strict=True)
    return [falls([rank_correlation(one, other) for one, other in by_seed])]


def _accuracy_gains(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], joint: str, rule: Callable[..., Result]
) -> list[Result]:
    """One result for each pair that ran, on the first one's test accuracy less the second's."""
    results = []
    for one, other in pairs:
        if evidence.ran(one) and evidence.ran(other):
            columns = (evidence.last("training", name, "test_accuracy") for name in (one, other))
            gains = [a - b for a, b in zip(*columns, strict=True)]
            veto = evidence.trace_veto("training", one, other)
            results.append(rule(gains, case=f"{one} {joint} {other}", veto=veto))
    return results
