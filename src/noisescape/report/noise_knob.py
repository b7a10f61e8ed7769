"""Figures and report of the noise-knob experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.report.learning_curves import draw_curves
from noisescape.report.page import Figure, Section
from noisescape.report.style import LABELS, in_order
from noisescape.report.tables import noise_knob_table, trace_table
from noisescape.report.training import draw_scatter
from noisescape.runs.run import Run


def noise_knob_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    names = in_order(config["dynamics"])
    curves = Curves(run.metrics().to_pylist(), int(config["seeds"]))
    saved = partial(Figure.drawn, run)
    return _lead(summary, config), [
        Section(
            "Where each arm ended",
            f"{_about(summary, config)}\n\nMean ± standard error over {seeds_text(summary['seeds'])}.",
            [noise_knob_table(summary).labelled(LABELS), trace_table(summary, ".3g").labelled(LABELS)],
        ),
        Section(
            "Learning curves",
            "Thin lines are seeds, thick ones their mean; grey are the means of the others. "
            f"{_on_the_way(curves, names)}",
            [saved("learning_curves", draw_curves(curves, names, "training"), "Training loss and test accuracy.")],
        ),
        Section(
            "Sharpness against test accuracy",
            f"Expected sharpness E[L(θ+ν) − L(θ)] at δ = {config['sharpness_delta']:g} and test accuracy at the "
            "last step; small points are seeds, large ones their mean. The arms end at unlike training losses, on "
            "which sharpness depends, too.",
            [
                saved(
                    "sharpness_accuracy",
                    draw_scatter(curves, names, int(config["steps"])),
                    "Sharpness and test accuracy of every arm.",
                )
            ],
        ),
    ]


def _about(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What ran on what."""
    large, small = config["batch_size"], config["small_batch_size"]
    return (
        f"Preset {summary['preset']}: a network of 2,118 parameters on {config['clean']:,} images of "
        f"{summary['data']['train']['name']} and {config['corrupted']:,} more with random labels. Every arm takes "
        f"{config['steps']:,} steps from the same initialisation at the same learning rates: {config['lr']:g}, "
        f"falling linearly to 0 from {config['decay_from']:.0%} of the steps on, whatever its batch size.\n\n"
        f"Large batch: the mean gradient of {large} samples. As if small: their losses re-weighted so that the "
        f"gradient has the covariance of batches of {small}. Small batch: {small} samples. Isotropic noise: the "
        "large batch's gradient and Gaussian noise of one variance in all directions, which brings the trace to "
        "that of the small batch. Micro-gradient penalty: no noise added, but in the loss the mean of the squared "
        f"gradient norms of the large batch's parts of {small}, with strength {config['penalty']:g} × η/4."
    )


def _on_the_way(curves: Curves, names: Sequence[str]) -> str:
    """Where each arm's mean test accuracy was highest: the comparison at the last step does not see it."""
    highest = []
    for name in names:
        by_seed = [curve for curve in curves.of("training", name, "test_accuracy") if curve]
        common = set(by_seed[0]).intersection(*by_seed)
        means = {step: sum(curve[step] for curve in by_seed) / len(by_seed) for step in sorted(common)}
        step = max(means, key=lambda step: (math.isfinite(means[step]), means[step]))
        highest.append(f"{LABELS[name]} {means[step]:.1%} at step {step:,}")
    return f"Highest mean test accuracy on the way, seen with hindsight and on the test set: {', '.join(highest)}."


def _lead(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    found = summary["final"]
    values = {name: found[name]["test_accuracy"]["value"] for name in in_order(config["dynamics"])}
    listed = ", ".join(
        f"{LABELS[name]} {'diverged' if value is None else f'{value:.1%}'}" for name, value in values.items()
    )
    return f"Test accuracy after the same number of steps, mean of {seeds_text(summary['seeds'])}: {listed}."
