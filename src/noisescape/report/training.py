"""Figures and report of the training experiments: SVHN and CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import PercentFormatter

from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.experiments.protocols.comparison import LOOK_EVERY
from noisescape.report.learning_curves import draw_curves, mean_over_seeds
from noisescape.report.page import Figure, Section
from noisescape.report.style import COLOURS, LABELS, in_order, legend_outside, line_style, new_figure
from noisescape.report.tables import trace_table, training_table
from noisescape.runs.run import Run

GRADIENT_SECONDS = 0.0057
"""Of one CPU core, for the gradient of an image of 32 × 32 pixels at the full width: decision 22."""


def training_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    names = in_order(config["dynamics"])
    curves = Curves(run.metrics().to_pylist(), int(config["seeds"]))
    saved = partial(Figure.drawn, run)
    learning = Section(
        "Learning curves",
        "Thin lines are seeds, thick ones their mean; grey are the means of the others.",
        [saved("learning_curves", draw_curves(curves, names, "training"), "Training loss and test accuracy.")],
    )
    if config.get("level") is not None:  # earlier runs know of none
        return _lead_at_one_loss(summary), [*_at_one_loss(run, curves, names), learning]
    along = []
    if config.get("sharpness_at"):  # earlier runs measured it at the end only
        picture = saved("sharpness", draw_along(curves, names), "Expected sharpness of every dynamics by step.")
        text = "Where the published code measures it. Thin lines are seeds, thick ones their mean."
        along = [Section("Sharpness along training", text, [picture])]
    return _lead(summary), [
        Section(
            "Where each noise ended",
            f"{about(summary, config)}\n\nMean ± standard error over {seeds_text(summary['seeds'])}.",
            [training_table(summary).labelled(LABELS), trace_table(summary, ".3g").labelled(LABELS)],
        ),
        Section(
            "Sharpness against test accuracy",
            f"Expected sharpness E[L(θ+ν) − L(θ)] at δ = {config['sharpness_delta']:g} and test accuracy "
            "at the last step; small points are seeds, large ones their mean. Sharpness at an end point "
            "depends on how far the loss has come down, too: compare points of equal loss.",
            [
                saved(
                    "sharpness_accuracy",
                    draw_scatter(curves, names, int(config["steps"])),
                    "Sharpness and test accuracy of every dynamics.",
                )
            ],
        ),
        learning,
        *along,
    ]


def _at_one_loss(run: Run, curves: Curves, names: Sequence[str]) -> list[Section]:
    """What the page of a run has that compares at one training loss, before its learning curves."""
    summary, config = run.summary(), run.info["config"]
    saved = partial(Figure.drawn, run)
    beyond = [Section("What this size cannot decide", _beyond(run.info["experiment"], config), [])]
    if config["width"] == 1:
        beyond = []
    return [
        Section(
            "At the same training loss",
            f"{about(summary, config)}\n\nEvery dynamics trains until the loss of the whole training set, "
            f"looked at every {LOOK_EVERY} steps, is at or below {config['level']:g}. What the steps end above it "
            f"is quenched to it by at most {config['quench_steps']:,} steps of gradient descent, and what does not "
            "get there is censored. The others are then quenched to the lowest of their losses: within a seed all "
            "are compared at exactly one.",
            [training_table(summary).labelled(LABELS), trace_table(summary, ".3g").labelled(LABELS)],
        ),
        Section(
            "Sharpness against test accuracy",
            f"Expected sharpness E[L(θ+ν) − L(θ)] at δ = {config['sharpness_delta']:g} and test accuracy, within a "
            "seed at the same training loss; small points are seeds, large ones their mean.",
            [
                saved(
                    "sharpness_accuracy",
                    draw_scatter(curves, names, int(config["steps"]), "matched", "sharpness"),
                    "Sharpness and test accuracy of every dynamics at the same training loss.",
                )
            ],
        ),
        *beyond,
    ]


def _beyond(experiment: str, config: Mapping[str, Any]) -> str:
    """What only a GPU can decide, what it would cost without one, and how to run it."""
    steps = int(config["steps"])
    hours = " and ".join(
        f"{3 * steps * GRADIENT_SECONDS * train / 3600:,.0f} of {train:,} images" for train in (5_000, 25_000)
    )
    return (
        f"The paper's network is {1 / config['width']:g} times as wide as the one here, its images have "
        "32 × 32 pixels, and it trains for longer. Whether what is found here holds there only a GPU can tell: "
        f"at the full width the gradient of an image takes {1000 * GRADIENT_SECONDS:.1f} ms of a CPU core; "
        f"{steps:,} steps of the three dynamics that take whole gradients, gradient descent and isotropic and "
        f"diagonal noise, take some {hours} in core-hours a seed, their covariances not counted. The command is\n\n"
        f"noisescape reproduce {experiment} --preset two-cores --width 1 --image-size 32 --train 25000 "
        "--device cuda"
    )


def about(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Which preset ran, on what images, and how that differs from the paper."""
    train = summary["data"]["train"]
    share = "" if train["complete"] else " (only a part of the official set)"
    return (
        f"Preset {summary['preset']}: VGG-11 at {config['width']:g} of the published width on "
        f"{config['train']:,} of {train['rows']:,} images{share}, {config['image_size']} × {config['image_size']} "
        f"pixels in [{config['pixel_low']:g}, 1]; {config['steps']:,} steps from initialisation at learning rate "
        f"{config['lr']:g}, batch size {config['batch_size']}. Test set: {summary['data']['test_selection']}. "
        "The paper has the full width, 25,000 (SVHN) or 50,000 (CIFAR-10) images of 32 × 32 in [0, 1], "
        "learning rate 0.05 and batch size 100."
    )


def draw_along(curves: Curves, names: Sequence[str]) -> MplFigure:
    """Signed expected sharpness at the steps where it was measured, every seed and their mean."""
    figure = new_figure(6.8, 3.8)
    axis = figure.subplots()
    _lines(axis, curves, names, "sharpness/signed")
    axis.set_ylabel("expected sharpness")
    legend_outside(figure, axis)
    return figure


def _lines(axis: Axes, curves: Curves, names: Sequence[str], metric: str) -> None:
    """A metric by step: every seed thin, their mean thick."""
    for name in names:
        known = [curve for curve in curves.of("training", name, metric) if curve]
        for curve in known:
            axis.plot([*curve], [*curve.values()], line_style(name), color=COLOURS[name], linewidth=0.5, alpha=0.5)
        mean = mean_over_seeds(curves, "training", name, metric)
        axis.plot(*mean, line_style(name), color=COLOURS[name], linewidth=1.8, label=LABELS[name])
    axis.set_xlabel("step")


def draw_scatter(
    curves: Curves, names: Sequence[str], steps: int, phase: str = "training", sharpness: str = "sharpness/signed"
) -> MplFigure:
    """Sharpness against test accuracy where they were compared.

    Args:
        curves: what was recorded.
        names: of the dynamics.
        steps: at which their figures stand.
        phase: under which.
        sharpness: what sharpness is called there.
    """
    figure = new_figure(6.8, 4.2)
    axis = figure.subplots()
    for name in names:
        x, y = (curves.at(steps, phase, name, metric) for metric in (sharpness, "test_accuracy"))
        axis.plot(x, y, "o", color=COLOURS[name], alpha=0.4, markersize=4)
        if np.isfinite(x).any():
            x, y = ([value for value in column if np.isfinite(value)] for column in (x, y))
        axis.plot(np.mean(x), np.mean(y), "D", color=COLOURS[name], markersize=8, label=LABELS[name])
    axis.set(xlabel="expected sharpness", ylabel="test accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0), useMathText=True)
    legend_outside(figure, axis)
    return figure


def _lead_at_one_loss(summary: Mapping[str, Any]) -> str:
    accuracy = {
        name: found["test_accuracy"]["value"]
        for name, found in summary["final"].items()
        if found["test_accuracy"]["value"] is not None
    }
    if not accuracy:
        return "No dynamics came down to the training loss at which they were to be compared."
    listed = ", ".join(
        f"{LABELS[name]} {accuracy[name]:.1%}" for name in sorted(accuracy, key=lambda n: -accuracy[n])
    )
    return f"Test accuracy at the same training loss, mean of {seeds_text(summary['seeds'])}: {listed}."


def _lead(summary: Mapping[str, Any]) -> str:
    accuracy = {
        name: found["test_accuracy"]["value"]
        for name, found in summary["final"].items()
        if found["test_accuracy"]["value"] is not None
    }
    if not accuracy:
        return "Every dynamics diverged."
    order = sorted(accuracy, key=lambda name: -accuracy[name])
    listed = ", ".join(f"{LABELS[name]} {accuracy[name]:.1%}" for name in order)
    return f"Test accuracy after the same number of steps, mean of {seeds_text(summary['seeds'])}: {listed}."
