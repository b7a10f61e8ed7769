"""Figures and report of the escape experiments: FashionMNIST and digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from torch import Tensor

from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.report.learning_curves import draw_curves
from noisescape.report.page import Figure, Section, Table
from noisescape.report.style import COLOURS, LABELS, in_order, legend_outside, line_style, new_figure
from noisescape.report.tables import escape_table, number, trace_table
from noisescape.runs.run import Run


def escape_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    delta = float(config["sharpness_delta"])
    names = in_order(config["dynamics"])
    curves = Curves(run.metrics().to_pylist(), int(config["seeds"]))
    saved = partial(Figure.drawn, run)
    return _lead(summary), [
        Section(
            "What each noise did",
            f"{about(summary, config)}\n\nFrom the same minimum, {config['steps']} steps at learning rate "
            f"{config['lr']:g}, batch size {config['batch_size']}. Mean ± standard error over "
            f"{seeds_text(config['seeds'])}; the change is that of expected sharpness from the minimum, within a "
            "seed. A few seeds decide large effects only: read the intervals, not the third digit.",
            [escape_table(summary).labelled(LABELS), trace_table(summary, ".3f").labelled(LABELS)],
        ),
        Section(
            "Sharpness",
            f"Expected sharpness E[L(θ+ν) − L(θ)] with ν ~ N(0, δ²I), δ = {delta:g}: it falls where a dynamics "
            "leaves for flatter ground. Bands span the seeds.",
            [
                saved(
                    "sharpness", draw_sharpness(curves, names, delta), "Expected sharpness along the trajectories."
                )
            ],
        ),
        Section(
            "Learning curves",
            "Training loss rises where noise keeps the iterate off the floor of a narrow valley. Thin lines are "
            "seeds, thick ones their mean; grey are the means of the others.",
            [
                saved(
                    "learning_curves",
                    draw_curves(curves, names, "escape"),
                    "Training loss and test accuracy along the trajectories.",
                )
            ],
        ),
        Section(
            "The indicator",
            "Tr(HΣ) of minibatch noise along gradient descent to the minimum, against its isotropic reference "
            "TrH·TrΣ/D: the same amount of noise without its shape. Gradient descent at a fixed rate settles "
            "at the edge of stability rather than at a stationary point; ‖ḡ‖ says how far from one it ended.",
            [
                saved(
                    "indicator",
                    draw_descent(curves),
                    "Tr(HΣ) and its isotropic reference; decay exponent d, over ½ where H is ill-conditioned; "
                    "projection coefficient a. Every line is a seed.",
                ),
                _measurement_table(summary),
            ],
        ),
        Section(
            "Spectra at the minimum",
            "Left: eigenvalue density of the Hessian. Right: its leading eigenvalues beside those of the noise "
            "covariance, both relative to their largest.",
            [
                saved(
                    "spectra",
                    draw_spectra(run.tensors("spectra"), int(config["seeds"])),
                    "Spectra of the Hessian and of the noise covariance.",
                )
            ],
        ),
    ]


def draw_sharpness(curves: Curves, names: Sequence[str], delta: float) -> MplFigure:
    """Signed and absolute expected sharpness of every dynamics."""
    figure = new_figure(10.2, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, symbol in zip(axes, ("signed", "absolute"), ("E[ΔL]", "E|ΔL|"), strict=True):
        for name in names:
            _band(axis, curves, name, f"sharpness/{kind}", marker="o")
        axis.set(xlabel="step", title=f"{kind}: {symbol} at δ = {delta:g}")
    axes[0].set_ylabel("expected sharpness (loss units)")
    axes[0].set_ylim(bottom=0)
    legend_outside(figure, axes[0])
    return figure


def draw_descent(curves: Curves) -> MplFigure:
    """Tr(HΣ) and its isotropic reference, d and a, along gradient descent and at its end; every seed."""
    figure = new_figure(9.6, 3.4)
    left, middle, right = figure.subplots(1, 3)
    for axis, metric, label, colour in (
        (left, "trace_h_sigma", "Tr(HΣ)", "#d62728"),
        (left, "isotropic_reference", "isotropic: TrH·TrΣ/D", "#3b6fb6"),
        (middle, "decay_exponent", "d", "#8f5fbf"),
        (right, "projection_coefficient", "a", "#e58606"),
    ):
        both = curves.of("descent", "gd", f"along/{metric}"), curves.of("minimum", "gd", metric)
        for seed, (along, end) in enumerate(zip(*both, strict=True)):
            axis.plot(
                [*along, *end],
                [*along.values(), *end.values()],
                "o-",
                color=colour,
                alpha=0.8,
                markersize=4,
                label=label if seed == 0 else None,
            )
    left.set(title="Tr(HΣ), log scale", yscale="log")
    left.legend(loc="center right", fontsize=8)
    middle.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    middle.set(title="decay exponent d")
    right.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
    right.set(title="projection coefficient a")
    for axis in (left, middle, right):
        axis.set_xlabel("gradient-descent step")
    return figure


def draw_spectra(tensors: Mapping[str, Tensor], seeds: int) -> MplFigure:
    """Density of H and leading eigenvalues of H and Σ at the minima."""
    figure = new_figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    for seed in range(seeds):
        grid, density = (tensors[f"seed-{seed}/{part}"].numpy() for part in ("density_grid", "density"))
        left.plot(grid, np.maximum(density, 1e-6), linewidth=1.2, label=f"seed {seed}")
        for part, style, label in (("hessian", "o-", "H"), ("noise", "s--", "Σ")):
            values = tensors[f"seed-{seed}/{part}_eigenvalues"].numpy()
            colour = "#8f5fbf" if part == "hessian" else "#e58606"
            right.plot(
                np.arange(1, len(values) + 1),
                values / values[0],
                style,
                color=colour,
                alpha=0.8,
                markersize=4,
                label=label if seed == 0 else None,
            )
    left.set(xlabel="eigenvalue of H", ylabel="density (log scale)", yscale="log", ylim=(1e-5, None))
    left.legend()
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="rank of the eigenvalue", ylabel="eigenvalue / largest", yscale="log")
    right.legend()
    return figure


def _band(axis: Axes, curves: Curves, name: str, metric: str, marker: str | None = None) -> None:
    """Mean over seeds, with the span of the seeds behind it."""
    of_seeds = curves.of("escape", name, metric)
    steps = [*of_seeds[0]]
    values = np.array(
        [
            np.interp(steps, [*curve], [*curve.values()]) if curve else np.full(len(steps), np.nan)
            for curve in of_seeds
        ]
    )
    axis.fill_between(steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.1, linewidth=0)
    axis.plot(
        steps,
        values.mean(0),
        line_style(name),
        color=COLOURS[name],
        linewidth=1.5,
        label=LABELS[name],
        marker=marker,
        markersize=4,
    )


def about(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Which preset ran and on what images."""
    train = summary["data"]["train"]
    share = "" if train["complete"] else " (only a part of the official set)"
    return (
        f"Preset {summary['preset']}: {config['clean']} images with their own labels and {config['corrupted']} "
        f"with random ones, of {train['rows']:,} of {train['name']}{share}; {config['gd_steps']} steps of "
        "gradient descent to the minimum. The paper has 1,000 + 200 images, about 3,000 steps and up to 20,000 "
        "from there."
    )


def _measurement_table(summary: Mapping[str, Any]) -> Table:
    measured = {
        "trace_h_sigma": "Tr(HΣ)",
        "isotropic_reference": "isotropic reference TrH·TrΣ/D",
        "anisotropy": "ratio of the two",
        "upper_bound": "upper bound D·λ₁/TrH",
        "projection_coefficient": "a",
        "decay_exponent": "d",
        "alignment": "cos(H, Σ)",
        "gradient_norm": "‖ḡ‖",
        "trace_h": "Tr H",
        "trace_sigma": "Tr Σ",
    }
    rows = [[label, *(_measured(found[name]) for found in summary["minimum"])] for name, label in measured.items()]
    columns = ["at the minimum", *(f"seed {seed}" for seed in range(len(summary["minimum"])))]
    return Table(columns, rows, "Measured at the minimum; ± is the standard error, numbers without it are exact.")


def _measured(found: Mapping[str, Any]) -> str:
    exact = number(found["value"], ".4g")
    if found["value"] is None or found["stderr"] == 0:
        return exact
    return f"{exact} ± {'?' if found['stderr'] is None else number(found['stderr'], '.2g')}"


def _lead(summary: Mapping[str, Any]) -> str:
    change = summary["sharpness_change"]
    flatter = [LABELS[name] for name, found in change.items() if (found["high"] or 0) < 0]
    values = [found["anisotropy"]["value"] for found in summary["minimum"]]
    anisotropy = [value for value in values if value is not None]
    verdict = (
        f"Expected sharpness fell, with an interval clear of zero, under {_listed(flatter)}"
        if flatter
        else "No dynamics lowered the expected sharpness with an interval clear of zero"
    )
    times = f"{min(anisotropy):.0f} to {max(anisotropy):.0f}" if anisotropy else "an unknown number of"
    seeds = seeds_text(summary["seeds"])
    return f"At the minimum Tr(HΣ) is {times} times its isotropic reference. {verdict} ({seeds})."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
