"""Figures and report of the two-dimensional toy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import contourpy
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from noisescape.report.page import Figure, Interactive, Section
from noisescape.report.style import COLOURS, LABELS, in_order, legend_outside, new_figure
from noisescape.report.tables import toy_2d_table
from noisescape.runs.run import Run
from noisescape.theory.landscapes import FLAT_MINIMUM, GEOMETRIES, SHARP_MINIMUM, Geometry, toy_2d

GEOMETRY_TITLES: dict[str, str] = {
    "published": "published basin",
    "isotropic": "control: isotropic basin",
    "rotated": "control: basin turned by 90°",
}
EXTENT = (-2.2, 2.2)
FRAMES = 40
"""Of the moving picture. A page of 60 would be over 2 MB."""


def toy_2d_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    paths = run.tensors("trajectories")
    below = float(config["escaped_below"])
    saved = partial(Figure.drawn, run)
    return _lead(summary), [
        Section(
            "Who escapes",
            f"Share of replicas that end in the flat basin (both coordinates below {below:g}), with 95 % Wilson "
            "intervals. Every noise has the same trace; only its shape differs.",
            [
                saved("success", draw_success(summary), "Success rate of each dynamics, by geometry."),
                toy_2d_table(summary).labelled({**LABELS, **GEOMETRY_TITLES}),
            ],
        ),
        Section(
            "Watch it",
            "Six replicas of each dynamics on the published landscape. Press play, or move the slider; click a "
            "name in the legend to hide it.",
            [
                Interactive.moving(
                    animate(paths, int(config["steps"])), "Replicas moving from the sharp minimum at (1, 1)."
                )
            ],
        ),
        Section(
            "Trajectories",
            "The first replicas of each dynamics over the contours of the landscape (drawn for x = 0). The "
            "shaded corner is where a replica counts as escaped.",
            [
                saved(
                    "trajectories",
                    draw_trajectories(paths, below),
                    "Trajectories on the contours of the landscape.",
                )
            ],
        ),
        Section(
            "Does Tr(HΣ) predict it?",
            "The indicator of the injected gradient noise at the start against the success rate. If it alone "
            "decided, the three panels would show one curve. The controls say how far that holds: in the "
            "turned basin the noise of the published geometry meets the same curvature, but the steep "
            "direction no longer leads to the flat basin; in the isotropic basin every shape has the same "
            "indicator, so any difference left is due to direction.",
            [
                saved(
                    "indicator",
                    draw_indicator(summary),
                    "Indicator at the start and success rate, one point a dynamics.",
                )
            ],
        ),
    ]


def draw_success(summary: Mapping[str, Any]) -> MplFigure:
    """Success rates with Wilson intervals, a panel for each geometry."""
    panels = _geometries(summary)
    figure = new_figure(3.4 * len(panels) + 1, 3.2)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (geometry, found) in zip(axes, panels.items(), strict=True):
        for row, (name, rate) in enumerate(found["success"].items()):
            spread = [[rate["rate"] - rate["low"]], [rate["high"] - rate["rate"]]]
            axis.barh(row, rate["rate"], color=COLOURS[name], alpha=0.35, height=0.6)
            axis.errorbar(rate["rate"], row, xerr=np.abs(spread), fmt="o", color=COLOURS[name], capsize=3)
            axis.text(rate["high"] + 0.015, row, f"{rate['rate']:.1%}", va="center", fontsize=9)
        count = next(iter(found["success"].values()))["n"]
        axis.set_title(f"{GEOMETRY_TITLES[geometry]} (n = {count})")
        axis.set_xlabel("success rate")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
    names = next(iter(panels.values()))["success"]
    axes[0].set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes[0].invert_yaxis()
    top = max(rate["high"] for found in panels.values() for rate in found["success"].values())
    axes[0].set_xlim(0, min(1.2, top + 0.15))
    return figure


def draw_indicator(summary: Mapping[str, Any]) -> MplFigure:
    """Tr(HΣ) at the start against the success rate."""
    panels = _geometries(summary)
    figure = new_figure(3.4 * len(panels) + 1, 3.2)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (geometry, found) in zip(axes, panels.items(), strict=True):
        for name, rate in found["success"].items():
            value = found["trace_h_sigma"][name]["value"]
            spread = np.abs([[rate["rate"] - rate["low"]], [rate["high"] - rate["rate"]]])
            axis.errorbar(
                value, rate["rate"], yerr=spread, fmt="o", color=COLOURS[name], capsize=3, label=LABELS[name]
            )
        axis.set_title(GEOMETRY_TITLES[geometry])
        axis.set_xlabel("Tr(HΣ) at the start")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0), useMathText=True)
    axes[0].set_ylabel("success rate")
    legend_outside(figure, axes[0])
    return figure


def draw_trajectories(paths: Mapping[str, Tensor], escaped_below: float) -> MplFigure:
    """A panel for each dynamics: tracked replicas over contours of the published landscape."""
    names = [key.removeprefix("published/") for key in _published(paths)]
    columns = -(-len(names) // 2)
    figure = new_figure(3.2 * columns, 6.6)
    grid = figure.subplots(2, columns, sharex=True, sharey=True)
    x, y, height = _landscape()
    for spare in grid.flat[len(names) :]:
        spare.set_axis_off()
    for axis, name in zip(grid.flat, in_order(names), strict=False):
        axis.contour(x, y, np.log10(height + 1e-2), levels=10, colors="#9aa5b1", linewidths=0.6)
        low = EXTENT[0]
        axis.fill_between([low, escaped_below], low, escaped_below, color="#5a9a3c", alpha=0.12, linewidth=0)
        path = paths[f"published/{name}"].numpy()
        for replica in range(min(3, path.shape[1])):
            axis.plot(*path[::2, replica].T, color=COLOURS[name], linewidth=0.8, alpha=0.8)
            axis.plot(*path[-1, replica], "o", color=COLOURS[name], markersize=5)
        axis.plot(*SHARP_MINIMUM, "*", color="black", markersize=8)
        axis.plot(*FLAT_MINIMUM, "P", color="black", markersize=6)
        axis.set_title(LABELS[name])
        axis.set(xlim=EXTENT, ylim=EXTENT, aspect="equal")
        axis.grid(visible=False)
    for axis in grid.flat[len(names) - columns : len(names)]:  # the lowest of every column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("$w_1$")
    for axis in grid[:, 0]:
        axis.set_ylabel("$w_2$")
    figure.suptitle("★ start, in the sharp minimum   ✚ flat minimum   ● where a replica ended", fontsize=10)
    return figure


def animate(paths: Mapping[str, Tensor], steps: int) -> go.Figure:
    """The tracked replicas moving over the landscape; frames are named by their step."""
    chosen = _published(paths)
    names = in_order(key.removeprefix("published/") for key in chosen)
    length = len(next(iter(chosen.values())))
    x, y, height = _landscape(points=71)
    frame_numbers = list(range(0, length, max(1, length // FRAMES)))
    if frame_numbers[-1] != length - 1:
        frame_numbers.append(length - 1)

    def rounded(places: Tensor) -> list[float]:
        return [round(place, 3) for place in places.tolist()]  # of a page all digits would be half

    def markers(position: int) -> list[go.Scatter]:
        return [
            go.Scatter(
                x=rounded(chosen[f"published/{name}"][position, :, 0]),
                y=rounded(chosen[f"published/{name}"][position, :, 1]),
                mode="markers",
                name=LABELS[name],
                marker={"color": COLOURS[name], "size": 10, "line": {"color": "white", "width": 1}},
            )
            for name in names
        ]

    along, across = _contour_lines(x, y, np.log10(height + 1e-2), np.arange(-2, 2.01, 0.25))
    contour = go.Scatter(
        x=along,
        y=across,
        mode="lines",
        line={"color": "#9aa5b1", "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    traced = list(range(1, len(names) + 1))
    frames = [
        go.Frame(data=markers(position), traces=traced, name=str(round(position * steps / (length - 1))))
        for position in frame_numbers
    ]
    figure = go.Figure(data=[contour, *markers(0)], frames=frames)
    figure.update_layout(
        width=720,
        height=640,
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        xaxis={"range": EXTENT, "title": {"text": "w₁"}, "constrain": "domain"},
        yaxis={"range": EXTENT, "title": {"text": "w₂"}, "scaleanchor": "x", "constrain": "domain"},
    )
    return figure


def _landscape(points: int = 101) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published landscape for the single data point x = 0, on a grid."""
    line = torch.linspace(*EXTENT, points)
    first, second = torch.meshgrid(line, line, indexing="xy")
    risk = toy_2d(torch.zeros(1, 2), "published")
    height = risk.loss(torch.stack([first.flatten(), second.flatten()], dim=1))
    return first.numpy(), second.numpy(), height.view(points, points).numpy()


def _contour_lines(
    x: np.ndarray, y: np.ndarray, height: np.ndarray, levels: np.ndarray
) -> tuple[list[float | None], list[float | None]]:
    """All contours as one line with gaps."""
    generator = contourpy.contour_generator(x, y, height)
    along: list[float | None] = []
    across: list[float | None] = []
    for level in levels:
        for line in map(np.asarray, generator.lines(float(level))):
            along += [*(round(float(place), 3) for place in line[:, 0]), None]
            across += [*(round(float(place), 3) for place in line[:, 1]), None]
    return along, across


def _published(paths: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: path for key, path in paths.items() if key.startswith("published/")}


def _geometries(summary: Mapping[str, Any]) -> dict[Geometry, Mapping[str, Any]]:
    return {
        geometry: summary if geometry == "published" else summary["controls"][geometry]
        for geometry in GEOMETRIES
        if geometry == "published" or geometry in summary["controls"]
    }


def _lead(summary: Mapping[str, Any]) -> str:
    success = summary["success"]
    best = max(success, key=lambda name: success[name]["rate"])
    return (
        f"{summary['replicas']:,} replicas of each dynamics start in a sharp minimum; every noise has the same "
        f"trace. The noise that escapes most often is {LABELS[best]} ({success[best]['rate']:.0%}); isotropic "
        f"noise does in {success['gld-constant']['rate']:.1%} of the replicas, plain gradient descent in "
        f"{success['gd']['rate']:.0%}. Preset: {summary['preset']}."
    )
