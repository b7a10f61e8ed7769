"""Figures and report of the one-hidden-layer experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.report.page import Figure, Section
from noisescape.report.style import new_figure
from noisescape.report.tables import one_hidden_layer_table
from noisescape.runs.run import Run

OPTIMISERS = {"adam": "Adam", "gd": "gradient descent"}


def one_hidden_layer_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    curves = Curves(run.metrics().to_pylist(), int(config["seeds"]), by=("optimiser", "width", "metric"))
    saved = partial(Figure.drawn, run)
    return _lead(summary), [
        Section(
            "The indicator along training",
            f"Preset {summary['preset']}: {config['points']:,} points, batch size {config['batch_size']} with "
            f"replacement, {config['epochs']} epochs of {config['steps_per_epoch']} full-batch steps. After "
            "every epoch Tr(HΣ), exact, beside TrH·TrΣ/D, what isotropic noise of the same trace would give. "
            "A network that is piecewise linear in its trained layer has H equal to its Gauss–Newton matrix.",
            [
                saved(
                    "indicator",
                    draw(curves, ("trace_h_sigma", "isotropic_reference"), "Tr(HΣ)"),
                    "Solid: Tr(HΣ). Dashed: its isotropic reference. Every line is a seed.",
                ),
                one_hidden_layer_table(summary).labelled(OPTIMISERS),
            ],
        ),
        Section(
            "Training",
            "The clip leaves points on the right side of their label without gradient; a network whose outputs "
            "are all clipped stands still.",
            [saved("loss", draw(curves, ("loss",), "training loss"), "Training loss, every seed.")],
        ),
    ]


def draw(curves: Curves, metrics: Sequence[str], label: str) -> MplFigure:
    """A panel for each width and optimiser; the first metric solid, a second dashed."""
    widths = sorted({width for _, width, _ in curves.names})
    optimisers = sorted({optimiser for optimiser, _, _ in curves.names}, key=list(OPTIMISERS).index)
    figure = new_figure(3.2 * len(widths) + 0.6, 2.5 * len(optimisers) + 0.3)
    grid = figure.subplots(len(optimisers), len(widths), sharex=True, squeeze=False)
    for line, optimiser in zip(grid, optimisers, strict=True):
        for axis, width in zip(line, widths, strict=True):
            for metric, style, colour in zip(metrics, ("-", "--"), ("#d62728", "#3b6fb6"), strict=False):
                for curve in curves.of(optimiser, width, metric):
                    axis.plot([*curve], [*curve.values()], style, color=colour, linewidth=1)
            axis.set_yscale("log")
            axis.set_title(f"{OPTIMISERS[optimiser]}, width {width}")
        line[0].set_ylabel(label)
    for axis in grid[-1]:
        axis.set_xlabel("step")
    return figure


def _lead(summary: Mapping[str, Any]) -> str:
    logs = [found["log_anisotropy"]["value"] for found in summary["anisotropy"].values()]
    values = [math.exp(value) for value in logs if value is not None]
    if not values:
        return "No network kept a gradient: every output was clipped, and there is no noise to measure."
    return (
        f"Tr(HΣ) is on average {min(values):.3g} to {max(values):.3g} times its isotropic reference along "
        f"training, by width and optimiser ({seeds_text(summary['seeds'])})."
    )
