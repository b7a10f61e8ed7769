"""Training loss above test accuracy, small multiples: a column for each of what is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from noisescape.experiments.curves import Curves
from noisescape.report.style import COLOURS, LABELS, line_style, new_figure

ACROSS = 5
"""More columns than these go into a second band."""
OTHERS = "#c3c8ce"


def panels(titles: Sequence[str], draw: Callable[[Axes, int, str], None], across: int = ACROSS) -> Figure:
    """The figure, all panels of a metric on one scale.

    Args:
        titles: of the columns.
        draw: (axis, column, metric) ↦ None, for the metrics loss and test_accuracy.
        across: columns in a band.
    """
    count = len(titles)
    across = min(across, count)
    bands = math.ceil(count / across)
    figure = new_figure(1.2 + 2.3 * across, 0.6 + 3.4 * bands)
    grid = figure.subplots(2 * bands, across, sharex=True, squeeze=False)
    losses, accuracies = grid[::2].ravel(), grid[1::2].ravel()
    for column, title in enumerate(titles):
        draw(losses[column], column, "loss")
        draw(accuracies[column], column, "test_accuracy")
        losses[column].set_title(title, fontsize=9)
    for axis in (*losses[count:], *accuracies[count:]):
        axis.set_visible(False)
    for shared in (losses[:count], accuracies[:count]):
        for axis in shared[1:]:
            axis.sharey(shared[0])
        shared[0].autoscale(axis="y")  # now that it is all of them
    accuracies[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for band in range(bands):
        grid[2 * band, 0].set_ylabel("training loss")
        grid[2 * band + 1, 0].set_ylabel("test accuracy")
    for axis in grid[:, 1:].ravel():
        axis.tick_params(labelleft=False)
    for axis in accuracies[max(0, count - across) : count]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("step", fontsize=8)
    return figure


def draw_curves(curves: Curves, names: Sequence[str], phase: str) -> Figure:
    """A column a dynamics: its seeds thin, their mean thick, the means of the others grey behind them."""

    def draw(axis: Axes, column: int, metric: str) -> None:
        for name in (other for other in names if other != names[column]):
            axis.plot(*mean_over_seeds(curves, phase, name, metric), color=OTHERS, linewidth=0.8)
        name = names[column]
        for curve in curves.of(phase, name, metric):
            axis.plot([*curve], [*curve.values()], color=COLOURS[name], linewidth=0.5, alpha=0.5)
        axis.plot(
            *mean_over_seeds(curves, phase, name, metric), line_style(name), color=COLOURS[name], linewidth=1.8
        )

    return panels([LABELS[name] for name in names], draw)


def mean_over_seeds(curves: Curves, phase: str, name: str, metric: str) -> tuple[list[int], list[float]]:
    """Over the seeds, at the steps of the longest; not a number where one has no value."""
    known = [curve for curve in curves.of(phase, name, metric) if curve]
    steps = [*max(known, key=len, default={})]
    return steps, [float(np.mean([own.get(step, np.nan) for own in known])) for step in steps]
