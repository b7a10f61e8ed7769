"""The figures of a training's log over its steps."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from noisescape.report.monitor_figures import (
    ADAM_EDGE,
    ADAM_SCALE,
    EDGE,
    INDICATOR,
    NOISE_SCALE,
    SHARPNESS,
    SQUARED_NORM,
    TRACE,
    Kind,
    Series,
    group_kinds,
    series,
    short,
)
from noisescape.report.page import Figure
from noisescape.report.style import figure_style, new_figure
from noisescape.training.log import NoiseLog

MOST_POINTS = 600
"""More cannot be told apart at the width of a figure."""
MOST_GROUPS = 6
COLOURS = ("#1f5fa8", "#b35806", "#1b7837", "#762a83", "#c51b7d", "#444444")
DASHES: tuple[object, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: what it shows.
        drawn: what it is drawn of.
        ylabel: what stands at its axis.
        log: whether that is logarithmic.
        level: a horizontal line to compare with, and what it is.
    """

    title: str
    drawn: Sequence[Series]
    ylabel: str
    log: bool = False
    level: tuple[np.ndarray, np.ndarray, str] | None = None
    more: str = field(default="")


def curves(log: NoiseLog) -> list[Figure]:
    """A figure for each of the main figures that the log has."""
    with figure_style(), rc_context({"svg.hashsalt": "noisescape"}):
        return [Figure(_svg(drawing(panel)), _caption(panel)) for panel in panels(log)]


def panels(log: NoiseLog) -> list[Panel]:
    """What there is to draw."""
    found = []
    size = _level(log, "noise/batch_size", "batch size B")
    for kind, title in ((NOISE_SCALE, "Noise scale"), (ADAM_SCALE, "Noise scale in Adam's metric")):
        if (drawn := series(log, kind)) is not None:
            found.append(Panel(title, [drawn], "samples", log=True, level=size))
    groups = [drawn for kind in group_kinds(log) if (drawn := series(log, kind)) is not None]
    if groups:
        left_out = len(groups) - MOST_GROUPS
        more = f" {left_out} more groups are in the log." if left_out > 0 else ""
        found.append(
            Panel("Noise scale of each parameter group", groups[:MOST_GROUPS], "samples", log=True, more=more)
        )
    for kind, title, ylabel in (
        (TRACE, "Tr C of one sample", "Tr C"),
        (SQUARED_NORM, "Squared gradient norm", "‖ḡ‖²"),
    ):
        if (drawn := series(log, kind)) is not None:
            found.append(Panel(title, [drawn], ylabel))
    for kind, title in (
        (EDGE, "Top eigenvalue over the edge"),
        (ADAM_EDGE, "Top eigenvalue over the edge, Adam's metric"),
    ):
        if (drawn := series(log, kind)) is not None:
            one = (drawn.steps, np.ones(len(drawn.steps)), "the edge of stability")
            found.append(Panel(title, [drawn], "λ₁ / edge", level=one))
    if (drawn := series(log, SHARPNESS)) is not None:
        edge = _level(log, "noise/probe/stability_edge", "the edge of stability")
        found.append(Panel("Batch sharpness", [drawn], "gᵀHg/‖g‖²", level=edge))
    if (drawn := series(log, INDICATOR)) is not None:
        isotropic = _level(log, "noise/probe/isotropic_trace", "isotropic noise of the same trace")
        found.append(Panel("Tr(HΣ) of the minibatch noise", [drawn], "Tr(HΣ)", level=isotropic))
    return found


def _level(log: NoiseLog, key: str, label: str) -> tuple[np.ndarray, np.ndarray, str] | None:
    column = log.columns.get(key)
    if column is None:
        return None
    there = np.isfinite(column)
    return log.steps[there], column[there], label


def drawing(panel: Panel) -> MplFigure:
    """One of them, drawn."""
    figure = new_figure(5.0, 2.7)
    axis = figure.add_subplot()
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.yaxis.set_minor_locator(NullLocator())
    top = _top(panel)
    for index, drawn in enumerate(panel.drawn):
        _draw(axis, drawn, index, top, named=len(panel.drawn) > 1, log=panel.log)
    if panel.level is not None and panel.level[0].size:
        steps, values, label = panel.level
        axis.plot(steps, values, "--", color="#555555", linewidth=1.1, label=label)
        if steps.size == 1:
            axis.axhline(values[0], linestyle="--", color="#555555", linewidth=1.1)
    axis.set_title(panel.title, loc="left", fontweight="bold")
    axis.set_xlabel("optimiser step")
    axis.set_ylabel(panel.ylabel)
    axis.locator_params(axis="x", nbins=6)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8.5, loc="best")
    return figure


def _draw(axis: Axes, drawn: Series, index: int, top: float, *, named: bool, log: bool) -> None:
    chosen = _thinned(len(drawn.steps))
    steps, values = drawn.steps[chosen], drawn.values[chosen]
    low, high = drawn.low[chosen], drawn.high[chosen]
    if log:
        values, low = (np.where(part > 0, part, math.nan) for part in (values, np.maximum(low, top * 1e-9)))
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    # a dollar sign would begin a formula, an underscore hide the name from the legend
    label = f"\u2060{drawn.kind.label[:28]}".replace("$", r"\$") if named else None
    axis.plot(
        steps,
        values,
        color=colour,
        linestyle=dash,
        linewidth=1.6,
        label=label,
        marker="o" if len(steps) < 25 else None,
        markersize=3,
    )
    if not np.isnan(low).all():
        axis.fill_between(steps, low, np.minimum(high, top), color=colour, alpha=0.18, linewidth=0)
        if len(steps) == 1:
            axis.vlines(steps, low, np.minimum(high, top), color=colour, alpha=0.4, linewidth=4)


def _top(panel: Panel) -> float:
    """Where an interval without an upper end leaves the figure: above all that is finite."""
    parts = [part[np.isfinite(part)] for drawn in panel.drawn for part in (drawn.values, drawn.low, drawn.high)]
    if panel.level is not None:
        parts.append(panel.level[1])
    highest = max((float(part.max()) for part in parts if part.size), default=1.0)
    return highest * 3 if highest > 0 else 1.0


def _thinned(length: int) -> np.ndarray:
    """Evenly chosen rows, the last among them."""
    stride = -(-length // MOST_POINTS)
    return np.arange(length - 1, -1, -stride)[::-1]


def _caption(panel: Panel) -> str:
    parts = []
    for drawn in panel.drawn:
        name = f"{drawn.kind.label}: " if len(panel.drawn) > 1 else ""
        interval = f", 95\N{NO-BREAK SPACE}% interval {drawn.interval}" if drawn.interval else ""
        first, last = drawn.steps[0], drawn.steps[-1]
        begun = (
            f"From {short(float(drawn.values[0]), missing='undetermined')} at step {first} to "
            if first < last
            else ""
        )
        parts.append(f"{name}{begun if not name else begun.lower()}{drawn.latest} at step {last}{interval}.")
    notes = []
    if any(not np.isnan(drawn.low).all() for drawn in panel.drawn):
        notes.append("Shaded: 95\N{NO-BREAK SPACE}% intervals.")
    if panel.level is not None and panel.level[0].size:
        notes.append(f"Dashed: {panel.level[2]}, {short(float(panel.level[1][-1]))} at the end.")
    if max(len(drawn.steps) for drawn in panel.drawn) > MOST_POINTS:
        notes.append("Not every report is drawn.")
    return f"{panel.title}. {' '.join([*parts, *notes])}{panel.more}"


def _svg(figure: MplFigure) -> str:
    text = io.StringIO()
    with warnings.catch_warnings():  # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph .* missing from")
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


__all__ = ["Kind", "Panel", "curves", "drawing", "panels"]
