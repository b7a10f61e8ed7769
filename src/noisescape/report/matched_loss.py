"""Figures and report of the comparison at matched loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.claims.pool import Pool
from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.experiments.matched_ends import COLUMNS, End, ends, of_reached, seed_means
from noisescape.experiments.statistics import mean_over
from noisescape.report.learning_curves import panels
from noisescape.report.page import Figure, Section
from noisescape.report.style import COLOURS, LABELS, in_order, new_figure
from noisescape.report.tables import matched_loss_table, minima_table, ratio_text
from noisescape.report.two_phases import OUTSIDE, Outside, draw_two_phases, two_phases, two_phases_table
from noisescape.runs.run import Run

ARMS = LABELS | {
    "gld-dynamic": "isotropic, SGD's trace",
    "gld-diagonal": "diagonal, SGD's trace",
    "gld-shuffled": "shuffled, SGD's trace",
    "gld-shuffled-within-layers": "shuffled within layers, SGD's trace",
    "gld-leading": "leading, SGD's trace",
    "gld-hessian": "Hessian, SGD's trace",
    "gld-top-eigenvector": "1st eigenvector, SGD's trace",
}
"""What the arms are called here, where most noises are yoked to SGD's."""
SHOWN = 200
"""Points of a curve that are drawn."""


def matched_loss_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config, rows = run.summary(), run.info["config"], run.metrics().to_pylist()
    names = in_order(config["dynamics"])
    saved = partial(Figure.drawn, run)
    seeds, phases = int(config["seeds"]), two_phases(rows)
    figures = _figures(Curves(rows, seeds, COLUMNS), rows, seeds, config, names)
    outside = _outside(config)
    return _lead(summary, config), [
        Section(
            "At the same training loss",
            f"{_about(summary, config)}\n\nEvery iterate beside gradient descent's of exactly its loss. Means over "
            "noise seeds within a seed, then mean ± standard error over seeds.",
            [
                matched_loss_table(summary).labelled(ARMS),
                saved(
                    "sharpness",
                    figures["sharpness"],
                    "Expected sharpness over gradient descent's at the same training loss, and test accuracy less "
                    "gradient descent's. A point is a run; the bar is the mean over seeds.",
                ),
            ],
        ),
        Section(
            "What lies between",
            "Loss on the straight segment from the minimum to where each arm was compared, above the higher of its "
            "ends. A curved path may be lower.",
            [saved("barriers", figures["barriers"], "Height of the barrier. A point is a run.")],
        ),
        Section(
            "Learning curves",
            "The first run of every arm in each seed, up to where it was compared; SGD goes on from there at the "
            "same rate. Steps are counted from the minimum.",
            [
                saved(
                    "learning_curves",
                    figures["learning_curves"],
                    "Training loss, and below it test accuracy, from the minimum on. A line is a seed; grey points "
                    "are gradient descent where others came down to its loss.",
                )
            ],
        ),
        Section(
            "Two phases",
            _told(outside),
            [
                saved(
                    "two_phases",
                    figures["two_phases"],
                    "Accuracy of gradient descent up to the minimum, then of SGD. Thin lines are seeds, thick ones "
                    "their mean.",
                ),
                two_phases_table(phases, outside),
            ],
        ),
        Section("The minima", "Where all arms begin.", [minima_table(summary)]),
    ]


def pooled_figures(runs: Sequence[Run]) -> dict[str, MplFigure]:
    """What runs of the same constants show together, by name; for those to save who judge them together.

    Raises:
        ValueError: a repetition is in two of them.
    """
    pool = Pool(runs)
    names = in_order({name for ran in pool.dynamics for name in ran})
    return _figures(pool.curves(COLUMNS), pool.rows, pool.seeds, pool.config, names)


def _figures(
    curves: Curves,
    rows: Sequence[Mapping[str, Any]],
    seeds: int,
    config: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, MplFigure]:
    """All of the page, by name, of the rows of one run or of several pooled."""
    arms = arms_of(curves, config, names)
    return {
        "sharpness": draw_sharpness(arms),
        "barriers": draw_barriers(arms),
        "learning_curves": draw_learning_curves(Curves(_first_runs(rows), seeds), names),
        "two_phases": draw_two_phases(two_phases(rows), _outside(config)),
    }


def _outside(config: Mapping[str, Any]) -> Sequence[Outside]:
    """Others' figures, which are of FashionMNIST."""
    return OUTSIDE if config["data"] == "fashion_mnist" else ()


Arms = dict[str, list[list[End]]]
"""The arms beside gradient descent in the order in which they are shown: the runs of each in every seed."""


def arms_of(curves: Curves, config: Mapping[str, Any], dynamics: Collection[str]) -> Arms:
    """What these arms ended in, of one run or of several pooled."""
    return {name: ends(curves, config, name) for name in in_order(dynamics) if name != "gd"}


def draw_sharpness(arms: Arms) -> MplFigure:
    """Ratio of sharpness and gain of accuracy, a row for each arm."""
    figure = new_figure(9.6, 1.4 + 0.42 * len(arms))
    left, right = figure.subplots(1, 2, sharey=True)
    for height, name in enumerate(reversed(arms)):
        _draw_row(left, height, name, arms[name], of_reached(lambda end: end.log_sharpness), math.exp)
        _draw_row(right, height, name, arms[name], of_reached(lambda end: end.accuracy_gain), float)
    left.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
    right.axvline(0, color="#444444", linewidth=0.8, linestyle=":")
    left.set(xscale="log", xlabel="sharpness / gradient descent's")
    _name_rows(left, arms)
    right.set_xlabel("test accuracy − gradient descent's")
    right.xaxis.set_major_formatter(lambda value, _position: f"{100 * value:+.0f} pt" if value else "0")
    return figure


def draw_barriers(arms: Arms) -> MplFigure:
    """Heights of the barriers, a row for each arm."""
    figure = new_figure(7.2, 1.4 + 0.42 * len(arms))
    axis = figure.subplots()
    for height, name in enumerate(reversed(arms)):
        _draw_row(axis, height, name, arms[name], lambda end: end.barrier, float)
    axis.set(xlabel="barrier (loss)", ylim=(-0.6, len(arms) - 0.4))
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
    _name_rows(axis, arms)
    return figure


def _draw_row(
    axis: Axes,
    height: int,
    name: str,
    seeds: Sequence[Sequence[End]],
    statistic: Callable[[End], float],
    shown: Callable[[float], float],
) -> None:
    """An arm's runs as points, spread so that none hides another, and their mean over seeds as a bar."""
    single = [shown(value) for own in seeds for value in map(statistic, own) if math.isfinite(value)]
    spread = np.linspace(-0.16, 0.16, len(single)) if len(single) > 1 else np.zeros(len(single))
    axis.plot(single, height + spread, "o", color=COLOURS[name], alpha=0.45, markersize=4)
    if single:
        mean = shown(mean_over(seed_means(seeds, statistic)).value)
        axis.plot([mean] * 2, [height - 0.32, height + 0.32], color=COLOURS[name], linewidth=3)


def _name_rows(axis: Axes, arms: Arms) -> None:
    axis.set_yticks(range(len(arms)))
    axis.set_yticklabels([ARMS[name] for name in reversed(arms)])


def draw_learning_curves(curves: Curves, names: Sequence[str]) -> MplFigure:
    """Training loss above test accuracy, a column for each arm: its first run in every seed."""
    arms = [name for name in names if name != "gd"]

    def draw(axis: Axes, column: int, metric: str) -> None:
        if metric == "loss":
            _draw_curves(axis, curves, "gd", metric)
            axis.set_yscale("log")
        _draw_curves(axis, curves, arms[column], metric)

    return panels([ARMS[name] for name in arms], draw)


def _draw_curves(axis: Axes, curves: Curves, name: str, metric: str) -> None:
    """A line a seed; of gradient descent, whose losses are seen where others came down to them, points."""
    style = {"marker": "o", "linestyle": "", "markersize": 2} if name == "gd" else {"linewidth": 0.8}
    for curve in curves.of("escape", name, metric):
        known = [(step, value) for step, value in curve.items() if math.isfinite(value)]
        if known:
            thinned = known[:: max(1, len(known) // SHOWN)]
            axis.plot(*zip(*thinned, strict=True), color=COLOURS[name], alpha=0.7, **style)


def _first_runs(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (row for row in rows if row["replica"] == 0)


def _about(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What ran on what."""
    return (
        f"Preset {summary['preset']}: {config['clean']:,} images of {summary['data']['train']['name']} with their "
        f"own labels and {config['corrupted']:,} with random ones. {config['gd_steps']:,} steps of gradient "
        f"descent at {config['gd_lr']:g}, then at {config['settle_lr']:g} until "
        f"‖ḡ‖ < {config['settled_gradient']:g} and λ₁ < {config['settled_stability']:g}/η. "
        f"From there every arm at η = {config['lr']:g}, "
        f"B = {config['batch_size']}: SGD and full Gaussian noise until they have left and come back to the "
        "minimum's training loss L₀; the other noises as long as SGD and, step by step, with the trace that SGD's "
        "noise had. What ended above that loss is quenched to it."
    )


def _told(outside: Sequence[Outside]) -> str:
    """What the curve of both phases shows, and whose figures stand beside it."""
    about = (
        "Gradient descent from the initialisation until it has fitted, random labels too, and has settled; then "
        "the first run of SGD in each seed."
    )
    if not outside:
        return about
    return (
        f"{about} Crosses and the dotted line are read off a curve on the poster of Wu, Ma and E, How SGD selects "
        "the global minima in over-parameterized learning (NeurIPS 2018), for FashionMNIST with random labels: "
        "training accuracy crashes where SGD takes over, and is 100 % again at the last cross. We do not know its "
        "learning rates, batch size and number of images. The rewrite is a reader's, of the paper's experiment."
    )


def _lead(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    compared, missing = [], []
    for name in in_order(config["dynamics"]):
        if name == "gd":
            continue
        found = summary["compared"][name]
        ratio, gain = found["log_sharpness_ratio"]["value"], found["accuracy_gain"]["value"]
        if ratio is not None and gain is not None:
            compared.append(f"{ARMS[name]} {ratio_text(ratio)} times as sharp and {100 * gain:+.1f} points")
        else:
            missing.append(ARMS[name])
    seeds = seeds_text(summary["seeds"])
    about = f"At the same training loss, beside gradient descent from the same minimum ({seeds}): "
    told = f"{'; '.join(compared)} of test accuracy." if compared else "nothing could be compared."
    left_out = f" Nothing to compare of {', '.join(missing)}." if missing and compared else ""
    return f"{about}{told}{left_out}"
