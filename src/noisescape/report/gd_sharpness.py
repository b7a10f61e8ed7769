"""Figures and report of the sharpness that gradient descent settles at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.experiments.gd_sharpness import POSTER
from noisescape.report.page import Figure, Section
from noisescape.report.style import CYCLE, legend_outside, new_figure
from noisescape.report.tables import gd_sharpness_table, with_poster
from noisescape.runs.run import Run

LARGEST = "largest_eigenvalue"


def gd_sharpness_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    curves = Curves(run.metrics().to_pylist(), int(config["seeds"]), by=("rate", "metric"))
    saved = partial(Figure.drawn, run)
    beside = "; crosses: the poster's figures" if with_poster(summary) else ""
    return _lead(summary), [
        Section(
            "Where gradient descent settled",
            _about(summary, config),
            [
                gd_sharpness_table(summary),
                saved(
                    "settled",
                    draw_settled(curves, config, with_poster(summary)),
                    f"λ₁ at the last step, a point a seed; line: 2/η{beside}.",
                ),
            ],
        ),
        Section(
            "On the way",
            "A quadratic is stable under gradient descent while λ₁ < 2/η. Where the steps suffice λ₁ rises until "
            "it is there, and then stays; the loss goes on falling, no longer at every step. A line is a seed.",
            [saved("sharpening", draw_sharpening(curves, config), "λ₁·η/2, 1 at the edge, and training loss.")],
        ),
    ]


def draw_settled(curves: Curves, config: Mapping[str, Any], poster: bool) -> MplFigure:
    """λ₁ at the last step against the learning rate, beside 2/η and, where asked for, the poster's figures."""
    figure = new_figure(6.8, 4.2)
    axis = figure.subplots()
    rates = [float(rate) for rate in config["rates"]]
    ends = np.array([min(rates) / 1.3, max(rates) * 1.3])
    axis.plot(ends, 2 / ends, color="#444444", linewidth=0.8, linestyle=":", label="2/η")
    for place, rate in enumerate(rates):
        found = curves.at(int(config["steps"]), rate, LARGEST)
        label = None if place else "here"
        axis.plot([rate] * len(found), found, "o", color="#3b6fb6", alpha=0.45, markersize=5, label=label)
    if poster:
        spread = [error or 0.0 for _, error in POSTER.values()]
        shown = [value for value, _ in POSTER.values()]
        axis.errorbar([*POSTER], shown, spread, fmt="x", color="#d62728", markersize=8, label="poster")
    axis.set(xscale="log", yscale="log", xlabel="learning rate η", ylabel="sharpness λ₁ at the last step")
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.set_yticks([2 / rate for rate in rates], [f"{2 / rate:.3g}" for rate in rates])
    axis.minorticks_off()
    legend_outside(figure, axis)
    return figure


def draw_sharpening(curves: Curves, config: Mapping[str, Any]) -> MplFigure:
    """λ₁·η/2 and the training loss along the runs, every seed."""
    figure = new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    for place, rate in enumerate(config["rates"]):
        for seed in range(int(config["seeds"])):
            style = {"color": CYCLE[place % len(CYCLE)], "linewidth": 0.9, "alpha": 0.7}
            sharpness = curves.of(rate, LARGEST)[seed]
            label = None if seed else f"η = {rate:g}"
            left.plot([*sharpness], [rate * value / 2 for value in sharpness.values()], label=label, **style)
            loss = curves.of(rate, "loss")[seed]
            right.plot([*loss], [*loss.values()], **style)
    left.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
    left.set(xlabel="step", ylabel="λ₁·η/2")
    right.set(xlabel="step", ylabel="training loss", yscale="log")
    legend_outside(figure, left)
    return figure


def _about(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What ran on what, and what the outside figures are."""
    widths, name = "–".join(str(width) for width in config["widths"]), summary["data"]["train"]["name"]
    random = f" and {config['corrupted']:,} more with random labels" if config["corrupted"] else ""
    about = (
        f"Preset {summary['preset']}: fully connected ReLU networks with hidden layers of {widths} on "
        f"{config['clean']:,} images of {name}{random}, squared loss to one-hot labels, averaged over samples "
        f"and outputs; {config['steps']:,} full-batch steps at every learning rate. λ₁ is the largest "
        f"eigenvalue of the Hessian of that loss. Learning rates from {config['edge_from']:g} on are expected to "
        "reach the edge within the preset's steps, smaller ones are not."
    )
    if not with_poster(summary):
        return about
    return (
        f"{about}\n\nOutside figures: the poster of Wu, Ma and E, How SGD selects the global minima in "
        "over-parameterized learning (NeurIPS 2018), whose network, images, loss and number of steps the preset "
        "takes from their repository. Their λ₁ is from at most ten steps of a power iteration, which comes out too "
        "low rather than too high. What their ± is of we do not know; ours is the standard error over seeds."
    )


def _lead(summary: Mapping[str, Any]) -> str:
    found = {rate: ends["stability"]["value"] for rate, ends in summary["final"].items()}
    listed = ", ".join(
        f"{'diverged' if value is None else f'{value:.2f}'} at η = {rate}" for rate, value in found.items()
    )
    seeds = seeds_text(summary["seeds"])
    return f"λ₁ of the Hessian where gradient descent ended, over 2/η, mean of {seeds}: {listed}."
