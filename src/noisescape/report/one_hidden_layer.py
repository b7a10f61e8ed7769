"""Figures and report of the one-hidden-layer experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.claims import ledger
from noisescape.report.ledger import ledger_sections, rules_section
from noisescape.report.page import Figure, Section, Table, render
from noisescape.report.style import figure_style, new_figure
from noisescape.runs.run import Run

OPTIMISERS = {"adam": "Adam", "gd": "gradient descent"}
Rows = Sequence[Mapping[str, Any]]


def write_one_hidden_layer_report(run: Run, title: str) -> None:
    """Draw the figures and write ``report.html`` into the run directory."""
    summary, config = run.summary(), run.info["config"]
    rows = run.metrics().to_pylist()
    findings = ledger([run])
    with figure_style():
        indicator = run.save_figure("indicator", draw(rows, ("trace_h_sigma", "isotropic_reference"), "Tr(HΣ)"))
        loss = run.save_figure("loss", draw(rows, ("loss",), "training loss"))
    page = render(
        title=title,
        lead=_lead(summary),
        sections=[
            *ledger_sections(findings),
            Section(
                "The indicator along training",
                f"Preset {summary['preset']}: {config['points']:,} points, batch size {config['batch_size']} with "
                f"replacement, {config['epochs']} epochs of {config['steps_per_epoch']} full-batch steps. After "
                "every epoch Tr(HΣ), exact, beside TrH·TrΣ/D, what isotropic noise of the same trace would give. "
                "A network that is piecewise linear in its trained layer has H equal to its Gauss–Newton matrix.",
                [
                    Figure(indicator, "Solid: Tr(HΣ). Dashed: its isotropic reference. Every line is a seed."),
                    _table(summary),
                ],
            ),
            Section(
                "Training",
                "The clip leaves points on the right side of their label without gradient; a network whose outputs "
                "are all clipped stands still.",
                [Figure(loss, "Training loss, every seed.")],
            ),
            *rules_section(findings),
        ],
        facts=run.facts(),
    )
    run.write_report(page)


def draw(rows: Rows, metrics: Sequence[str], label: str) -> MplFigure:
    """A panel for each width and optimiser; the first metric solid, a second dashed."""
    widths = sorted({row["width"] for row in rows})
    optimisers = [name for name in OPTIMISERS if any(row["optimiser"] == name for row in rows)]
    figure = new_figure(3.2 * len(widths) + 0.6, 2.5 * len(optimisers) + 0.3)
    grid = figure.subplots(len(optimisers), len(widths), sharex=True, squeeze=False)
    for line, optimiser in zip(grid, optimisers, strict=True):
        for axis, width in zip(line, widths, strict=True):
            for metric, style, colour in zip(metrics, ("-", "--"), ("#d62728", "#3b6fb6"), strict=False):
                for curve in _curves(rows, optimiser, width, metric):
                    axis.plot(*zip(*curve, strict=True), style, color=colour, linewidth=1)
            axis.set_yscale("log")
            axis.set_title(f"{OPTIMISERS[optimiser]}, width {width}")
        line[0].set_ylabel(label)
    for axis in grid[-1]:
        axis.set_xlabel("step")
    return figure


def _curves(rows: Rows, optimiser: str, width: int, metric: str) -> list[list[tuple[int, float]]]:
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if (row["optimiser"], row["width"], row["metric"]) == (optimiser, width, metric):
            found.setdefault(row["seed"], []).append((row["step"], row["value"]))
    return [sorted(curve) for curve in found.values()]


def _table(summary: Mapping[str, Any]) -> Table:
    rows = []
    for case, found in summary["anisotropy"].items():
        optimiser, width = case.split("/")
        logs = found["log_anisotropy"]
        mean, low, high = (_exp(logs[key]) for key in ("value", "low", "high"))
        least, greatest = (_plain(found[key]) for key in ("least", "greatest"))
        rows.append([OPTIMISERS[optimiser], width, mean, f"{low} – {high}", least, greatest])
    columns = ["optimiser", "width", "Tr(HΣ)/Tr(HΣ̄)", "95 % interval", "least", "greatest"]
    return Table(columns, rows, "Geometric mean over epochs, interval over seeds; extremes over epochs and seeds.")


def _exp(value: float | None) -> str:
    return "–" if value is None or value > 300 else f"{math.exp(value):.1f}"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _lead(summary: Mapping[str, Any]) -> str:
    logs = [found["log_anisotropy"]["value"] for found in summary["anisotropy"].values()]
    values = [math.exp(value) for value in logs if value is not None]
    if not values:
        return "No network kept a gradient: every output was clipped, and there is no noise to measure."
    return (
        f"Tr(HΣ) is on average {min(values):.3g} to {max(values):.3g} times its isotropic reference along "
        f"training, by width and optimiser ({summary['seeds']} seeds)."
    )
