"""What a training's log says, as questions with answers and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

from noisescape.errors import InvalidValueError
from noisescape.report.monitor_figures import (
    ADAM_EDGE,
    ADAM_SCALE,
    EDGE,
    INDICATOR,
    NOISE_SCALE,
    SHARPNESS,
    Series,
    series,
    short,
)
from noisescape.report.page import Answer, Tone
from noisescape.training.batch_size import BatchSizeAdvice, Kind
from noisescape.training.log import NoiseLog

NEAR_EDGE = 0.1
"""λ₁ this close to the edge, relatively, is called at it: where training reaches the edge, λ₁ hovers about it."""


def answers(log: NoiseLog) -> list[Answer]:
    """What can be answered from what was reported."""
    return [*_noise(log), *_batch_size(log), *_stability(log), *_alignment(log), *_trust(log)]


def advice(log: NoiseLog, *, optimizer: Kind | None = None, target: int | None = None) -> BatchSizeAdvice:
    """What the latest noise scale says of another batch size.

    Raises:
        InvalidValueError: the log has no noise scale, or no batch size.
    """
    # what a monitor reports is a mean over steps, of which the last of an epoch may have fewer samples
    size = log.last("noise/batch_size")
    rounded = None if math.isnan(size) else max(1, round(size))
    return BatchSizeAdvice.from_log(log, batch_size=rounded, optimizer=optimizer, target=target)


def _noise(log: NoiseLog) -> Iterator[Answer]:
    found = series(log, NOISE_SCALE)
    if found is None:
        return
    known = math.isfinite(found.values[-1])
    row = log.at_last("noise/scale" if "noise/scale" in log.columns else "noise/scale_low")
    said = (
        f"The noise scale Tr C/‖ḡ‖² is {found.latest} samples: a batch of that size has as much noise as signal."
        if known
        else "The noise scale Tr C/‖ḡ‖² cannot be told yet: the squared gradient norm is lost in its noise."
    )
    measured = [
        f"{short(row[key])} {word}"
        for key, word in (
            ("noise/measured_steps", "steps"),
            ("noise/pieces", "micro-gradients a step"),
            ("noise/batch_size", "samples a step"),
        )
        if key in row
    ]
    told = known and not math.isinf(found.high[-1])
    yield Answer(
        "How noisy is the gradient?",
        said,
        f"{_interval(found)}; at step {found.steps[-1]}" + (f", from {', '.join(measured)}." if measured else "."),
        f"{found.latest} samples" if told else f"{found.latest}: not told from infinity",
        "plain" if told else "care",
    )
    if (adam := series(log, ADAM_SCALE)) is not None:
        yield Answer(
            "And as Adam sees it?",
            f"In the metric diag(1/(√v̂ + ε)) of Adam's step the noise scale is {adam.latest} samples.",
            f"{_interval(adam)}; at step {adam.steps[-1]}. v̂ counts as fixed.",
            "undetermined" if math.isnan(adam.values[-1]) else f"{adam.latest} samples",
            "plain",
        )


REGIMES: dict[str, tuple[str, Tone, str]] = {
    "noise": (
        "below the noise scale",
        "good",
        "Steps are limited by noise: a larger batch saves most of what it costs.",
    ),
    "curvature": (
        "above the noise scale",
        "care",
        "Steps are limited by curvature: a larger batch saves few steps.",
    ),
    "undecided": (
        "near the noise scale",
        "open",
        "B lies within the interval, so neither noise nor curvature is seen to limit the steps.",
    ),
}
"""Of what :attr:`BatchSizeAdvice.regime` may be: where B lies, the colour of that, and what it means."""


def _batch_size(log: NoiseLog) -> Iterator[Answer]:
    try:
        found = advice(log)
    except InvalidValueError:  # no noise scale, or no batch size: the page says which
        return
    verdict, tone, said = REGIMES[found.regime]
    steps, samples, scale = found.steps, found.samples, found.noise_scale
    metric = " in Adam's metric" if found.metric == "preconditioned" else ""
    yield Answer(
        "Is the batch large for this noise?",
        f"{said} From {found.batch_size} to {found.target} the rule 1 + B_noise/B expects {_times(steps.value)} "
        f"the steps and {_times(samples.value)} the samples.",
        f"Noise scale{metric} {_ends(scale.low, scale.high)} against B = {found.batch_size}; steps "
        f"{_ends(steps.low, steps.high)}, samples {_ends(samples.low, samples.high)} times. A rule of thumb: only "
        "training branches measures the critical batch size.",
        f"B = {found.batch_size} is {verdict}",
        tone,
    )


def _stability(log: NoiseLog) -> Iterator[Answer]:
    adam = series(log, ADAM_EDGE)
    found = adam or series(log, EDGE)
    if found is not None:
        ratio = float(found.values[-1])
        said = (
            f"The top eigenvalue λ₁ of the preconditioned Hessian is {found.latest} times the edge for Adam."
            if adam is not None
            else f"The top eigenvalue λ₁ is {found.latest} times the edge, 2/η or its form with momentum."
        )
        yield Answer(
            "Are the steps stable?",
            said,
            f"At step {found.steps[-1]}, on the probe's samples; λ₁ has no interval, and within "
            f"{_percent(NEAR_EDGE)} counts as at the edge.",
            *_against_edge(ratio),
        )
    if (found := series(log, SHARPNESS)) is None:
        return
    # 2/η bounds plain steps, not Adam's
    row = {} if adam is not None else log.at_last(f"noise/{SHARPNESS.name}")
    edge = row.get("noise/probe/stability_edge", math.nan)
    against = "" if math.isnan(edge) else f" against an edge of {short(edge)}"
    yield Answer(
        "How sharp is it along the steps' own gradients?",
        f"Batch sharpness gᵀHg/‖g‖² is {found.latest}{against}.",
        f"{_interval(found)}; at step {found.steps[-1]}. Minibatch training tends to hold this one at 2/η, and λ₁ "
        "below (arXiv 2412.20553).",
        *_sharp(found, edge),
    )


def _against_edge(ratio: float) -> tuple[str, Tone]:
    if abs(ratio - 1) <= NEAR_EDGE:
        return "λ₁ is at the edge", "care"
    return ("λ₁ is below the edge", "good") if ratio < 1 else ("λ₁ is beyond the edge", "bad")


def _sharp(found: Series, edge: float) -> tuple[str, Tone]:
    if math.isnan(edge) or not found.interval:
        return f"Batch sharpness is {found.latest}", "plain"
    if found.high[-1] < edge:
        return "Batch sharpness is below the edge", "good"
    if found.low[-1] > edge:
        return "Batch sharpness is beyond the edge", "care"
    return "Batch sharpness is not told from the edge", "open"


def _alignment(log: NoiseLog) -> Iterator[Answer]:
    found = series(log, INDICATOR)
    if found is None:
        return
    isotropic = log.at_last(f"noise/{INDICATOR.name}").get("noise/probe/isotropic_trace", math.nan)
    ratio = found.values[-1] / isotropic if isotropic > 0 else math.nan
    if math.isnan(ratio):
        return
    low = found.low[-1] / isotropic
    aligned = low > 1
    yield Answer(
        "Does the noise point along steep directions?",
        f"Tr(HΣ) is {short(float(found.values[-1]))}, {_times(ratio)} what isotropic noise of the same trace would "
        "have.",
        f"{_interval(found)}; Σ is the covariance of the minibatch gradient at B.",
        f"{_times(ratio)} isotropic noise" if aligned else "not told from isotropic noise",
        "plain",
    )


def _trust(log: NoiseLog) -> Iterator[Answer]:
    skipped = log.last("noise/skipped_steps")
    if skipped > 0:
        yield Answer(
            "Was anything left out?",
            f"{short(skipped)} measured steps could not be used.",
            "Their gradients were not finite, as under a gradient scaler whose scale is too high, or were thrown "
            "away or not understood; the monitor warned of the latter.",
            f"{short(skipped)} steps skipped",
            "care",
        )
    share = log.last("noise/overhead")
    if not math.isnan(share):
        yield Answer(
            "What did measuring cost?",
            f"Probes took {_percent(share)} of the time so far.",
            "Measured by the monitor itself, without the free figures.",
            f"{_percent(share)} of the time",
            "plain",
        )


def _percent(share: float) -> str:
    return f"{short(100 * share)}\N{NO-BREAK SPACE}%"


def _interval(found: Series) -> str:
    return f"95\N{NO-BREAK SPACE}% interval {found.interval}" if found.interval else "No interval was reported"


def _ends(low: float, high: float) -> str:
    return "without an interval" if math.isnan(low) else f"{short(low)} to {short(high)}"


def _times(value: float) -> str:
    return "an unknown number of times" if math.isnan(value) else f"{short(value)} times"
