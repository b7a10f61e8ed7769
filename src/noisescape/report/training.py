"""Figures and report of the training experiments: SVHN and CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.claims import ledger
from noisescape.report.comparison import mean_cell, trace_table
from noisescape.report.ledger import ledger_sections, rules_section
from noisescape.report.page import Figure, Section, Table, render
from noisescape.report.style import COLOURS, LABELS, figure_style, legend_outside, line_style, new_figure
from noisescape.runs.run import Run

Rows = Sequence[Mapping[str, Any]]


def write_training_report(run: Run, title: str) -> None:
    """Draw the figures and write ``report.html`` into the run directory."""
    summary, config = run.summary(), run.info["config"]
    rows = run.metrics().to_pylist()
    findings = ledger([run])
    with figure_style():
        curves = run.save_figure("learning_curves", draw_curves(rows))
        scatter = run.save_figure("sharpness_accuracy", draw_scatter(rows, int(config["steps"])))
    page = render(
        title=title,
        lead=_lead(summary),
        sections=[
            *ledger_sections(findings),
            Section(
                "Where each noise ended",
                f"{about(summary, config)}\n\nMean ± standard error over {summary['seeds']} seeds.",
                [_final_table(summary), trace_table(summary, ".3g")],
            ),
            Section(
                "Sharpness against test accuracy",
                f"Expected sharpness E[L(θ+ν) − L(θ)] at δ = {config['sharpness_delta']:g} and test accuracy "
                "at the last step; small points are seeds, large ones their mean. Sharpness at an end point "
                "depends on how far the loss has come down, too: compare points of equal loss.",
                [Figure(scatter, "Sharpness and test accuracy of every dynamics.")],
            ),
            Section(
                "Learning curves",
                "Thin lines are seeds, thick ones their mean.",
                [Figure(curves, "Training loss and test accuracy.")],
            ),
            *rules_section(findings),
        ],
        facts=run.facts(),
    )
    run.write_report(page)


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


def draw_curves(rows: Rows) -> MplFigure:
    """Training loss and test accuracy, every seed and their mean."""
    figure = new_figure(9.6, 3.8)
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("loss", "test_accuracy"), strict=True):
        for name in _dynamics(rows):
            curves = _by_seed(rows, name, metric)
            for curve in curves.values():
                axis.plot(
                    *zip(*curve, strict=True), line_style(name), color=COLOURS[name], linewidth=0.5, alpha=0.5
                )
            longest = max(curves.values(), key=len)
            steps = [step for step, _ in longest]
            known = [dict(curve) for curve in curves.values()]
            mean = [np.mean([own.get(step, np.nan) for own in known]) for step in steps]
            axis.plot(steps, mean, line_style(name), color=COLOURS[name], linewidth=1.8, label=LABELS[name])
        axis.set_xlabel("step")
    axes[0].set_ylabel("training loss")
    axes[1].set_ylabel("test accuracy")
    axes[1].yaxis.set_major_formatter("{x:.0%}")
    legend_outside(figure, axes[0])
    return figure


def draw_scatter(rows: Rows, steps: int) -> MplFigure:
    """Sharpness against test accuracy at the last step."""
    figure = new_figure(6.8, 4.2)
    axis = figure.subplots()
    for name in _dynamics(rows):
        sharpness, accuracy = (
            {seed: dict(curve).get(steps, np.nan) for seed, curve in _by_seed(rows, name, metric).items()}
            for metric in ("sharpness/signed", "test_accuracy")
        )
        x = [sharpness.get(seed, np.nan) for seed in accuracy]
        y = list(accuracy.values())
        axis.plot(x, y, "o", color=COLOURS[name], alpha=0.4, markersize=4)
        axis.plot(np.mean(x), np.mean(y), "D", color=COLOURS[name], markersize=8, label=LABELS[name])
    axis.set(xlabel="expected sharpness", ylabel="test accuracy")
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0), useMathText=True)
    legend_outside(figure, axis)
    return figure


def _by_seed(rows: Rows, name: str, metric: str) -> dict[int, list[tuple[int, float]]]:
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if (row["dynamics"], row["metric"]) == (name, metric):
            found.setdefault(row["seed"], []).append((row["step"], row["value"]))
    return {seed: sorted(curve) for seed, curve in sorted(found.items())}


def _dynamics(rows: Rows) -> list[str]:
    present = {row["dynamics"] for row in rows}
    return [name for name in LABELS if name in present]


def _final_table(summary: Mapping[str, Any]) -> Table:
    rows = [
        [
            LABELS[name],
            mean_cell(found["loss"], ".3f"),
            mean_cell(found["train_accuracy"], ".1f", 100),
            mean_cell(found["test_accuracy"], ".1f", 100),
            mean_cell(found["sharpness/signed"], ".2e"),
            mean_cell(found["sharpness/absolute"], ".2e"),
        ]
        for name, found in summary["final"].items()
    ]
    columns = ["noise", "training loss", "training accuracy, %", "test accuracy, %", "E[ΔL]", "E|ΔL|"]
    return Table(columns, rows, "At the last step; mean ± standard error over seeds.")


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
    return f"Test accuracy after the same number of steps, mean of {summary['seeds']} seeds: {listed}."
