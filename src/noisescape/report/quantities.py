"""Figures and report of the experiment on the quantities of the theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import PercentFormatter

from noisescape.experiments.curves import Curves
from noisescape.experiments.experiment import seeds_text
from noisescape.report.page import Figure, Section, Table
from noisescape.report.style import CYCLE, legend_outside, new_figure
from noisescape.report.tables import estimate, number, quantities_table
from noisescape.runs.run import Run

TERMS = {
    "descent": ("−η‖ḡ‖²", "#3b6fb6", "--"),
    "curvature": ("(η²/2) ḡᵀHḡ", "#17a2a2", "--"),
    "noise": ("(η²/2) Tr(HΣ)", "#e58606", "--"),
    "predicted": ("sum of the three", "#444444", "-"),
    "actual": ("loss seen", "#d62728", "-"),
}
"""Of the budget: label, colour and line."""


def quantities_report(run: Run) -> tuple[str, list[Section]]:
    """What the page says first, and its sections; the figures are drawn into the run's directory."""
    summary, config = run.summary(), run.info["config"]
    sizes = [int(size) for size in config["batch_sizes"]]
    curves = Curves(run.metrics().to_pylist(), int(config["seeds"]), by=("phase", "batch_size", "metric"))
    saved = partial(Figure.drawn, run)
    return _lead(summary), [
        Section(
            "The loss budget along SGD",
            f"{_about(summary, config)}\n\nIn one step the loss is expected to change by −η‖ḡ‖² + (η²/2) ḡᵀHḡ + "
            "(η²/2) Tr(HΣ), to second order in η. The three are added up along each run, beside the change of the "
            "loss really seen. What is left over holds the higher orders, kinks, what is interpolated between two "
            "measurements of Tr(HΣ), and the chance of the batches drawn, which alone averages out over seeds.",
            [
                saved(
                    "budget",
                    draw_budget(curves, sizes),
                    "What the loss was expected to change by along SGD, and what it did; means over seeds. Below, "
                    "the sum of the three and the loss on a scale of their own.",
                ),
                account_table(summary),
            ],
        ),
        Section(
            "One step from the minimum",
            f"The same for single steps of several sizes: the change of the loss averaged over {config['draws']} "
            "drawn batches, over what the budget says. For a smooth loss the quotient goes to 1 with η. That of a "
            "ReLU network has kinks: crossing one raises it on average, to second order in η, unseen by H.",
            [single_steps_table(summary, float(config["lr"]))],
        ),
        Section(
            "What the batch size changes",
            "At a given θ, Σ = C/B exactly: Tr(HΣ) and TrΣ fall as 1/B, and a, A, cosines and the ratio of Tr(HΣ) "
            "to its isotropic reference do not depend on B at all. What B changes is where the run settles. The "
            "balance is the noise term over what descent takes, 1 where the budget is even.",
            [quantities_table(summary)],
        ),
        Section(
            "The indicator and condition (2)",
            "Tr(HΣ) against what isotropic noise of the same trace would give; a, 1 where noise lies along u₁ as H "
            "does. Every line is a seed.",
            [
                saved(
                    "indicator",
                    draw_indicator(curves, sizes),
                    "Tr(HΣ), its isotropic reference (dashed), and the projection coefficient a.",
                )
            ],
        ),
        Section(
            "A against its control",
            "A = Tr(HC)·TrH/(TrC·TrH²) is 1 where C is proportional to H, in any dimension. In the control every "
            "sample keeps its Jacobian and gets the residual of another: what A has beyond it comes of which "
            "residual meets which Jacobian.",
            [
                saved(
                    "alignment",
                    draw_alignment(curves, sizes),
                    "A (solid) and A of the noise with shuffled residuals (dashed); every line is a seed.",
                )
            ],
        ),
        Section(
            "C, F and H",
            "The covariance of the gradients, the Fisher information and the Hessian, at the minimum and at the "
            f"end of each run. Overlap: of the leading {config['compared']} eigenvectors; of random ones it would "
            f"be {config['compared']}/D. Means ± standard errors over seeds.",
            [matrices_table(summary)],
        ),
        Section(
            "Sharpness and test accuracy",
            f"Expected sharpness at δ = {config['sharpness_delta']:g} and test accuracy of the iterates. Those of "
            "one run depend on each other, so each seed gives one rank correlation, and the interval is over seeds "
            "alone.",
            [
                saved(
                    "pairs", draw_pairs(curves, sizes), "Sharpness and test accuracy of the iterates, all seeds."
                ),
                correlation_table(summary),
            ],
        ),
    ]


# ---------------------------------------------------------------------- figures


def draw_budget(curves: Curves, sizes: Sequence[int]) -> MplFigure:
    """A column a batch size: the cumulative terms, their sum and the loss; below, the last two alone."""
    figure = new_figure(3.2 * len(sizes) + 1.6, 5.2)
    grid = figure.subplots(2, len(sizes), sharex=True, squeeze=False)
    for column, size in zip(grid.T, sizes, strict=True):
        for term, (label, colour, style) in TERMS.items():
            steps, values = _mean(curves.of("sgd", size, f"account/{term}"))
            for axis in column if term in ("predicted", "actual") else column[:1]:
                axis.plot(steps, values, style, color=colour, linewidth=1.5, label=label)
        column[0].set_title(f"B = {size}")
        column[1].set_xlabel("step")
    for axis in grid[:, 0]:
        axis.set_ylabel("change of the loss")
    legend_outside(figure, grid[0, 0])
    return figure


def draw_indicator(curves: Curves, sizes: Sequence[int]) -> MplFigure:
    """Tr(HΣ) with its reference, and a, by batch size."""
    figure = new_figure(9.6, 3.4)
    left, right = figure.subplots(1, 2)
    for size, colour in zip(sizes, _colours(sizes), strict=True):
        for metric, style in (("indicator/value", "-"), ("conditions/isotropic_reference", "--")):
            for seed, curve in enumerate(curves.of("sgd", size, metric)):
                label = f"B = {size}" if seed == 0 and style == "-" else None
                left.plot([*curve], [*curve.values()], style, color=colour, linewidth=1, label=label)
        for curve in curves.of("sgd", size, "conditions/projection_coefficient"):
            right.plot([*curve], [*curve.values()], "o-", color=colour, linewidth=1, markersize=4)
    left.set(title="Tr(HΣ), log scale", yscale="log", xlabel="step")
    right.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    right.set(title="projection coefficient a", xlabel="step")
    legend_outside(figure, left)
    return figure


def draw_alignment(curves: Curves, sizes: Sequence[int]) -> MplFigure:
    """A and A of its control along the runs."""
    figure = new_figure(6.8, 3.6)
    axis = figure.subplots()
    for size, colour in zip(sizes, _colours(sizes), strict=True):
        for kind, style in (("noise", "o-"), ("shuffled", "s--")):
            for seed, curve in enumerate(curves.of("sgd", size, f"alignment/{kind}")):
                label = (f"B = {size}" + (", shuffled" if kind == "shuffled" else "")) if seed == 0 else None
                axis.plot([*curve], [*curve.values()], style, color=colour, linewidth=1, markersize=4, label=label)
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="step", ylabel="A")
    legend_outside(figure, axis)
    return figure


def draw_pairs(curves: Curves, sizes: Sequence[int]) -> MplFigure:
    """Sharpness against test accuracy of every iterate."""
    figure = new_figure(6.8, 4.0)
    axis = figure.subplots()
    for size, colour in zip(sizes, _colours(sizes), strict=True):
        both = (curves.of("sgd", size, metric) for metric in ("sharpness/signed", "test_accuracy"))
        points = [(curve[step], right[step]) for curve, right in zip(*both, strict=True) for step in curve]
        axis.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.5, markersize=3, label=f"B = {size}")
    axis.set(xlabel="expected sharpness", ylabel="test accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    legend_outside(figure, axis)
    return figure


def _mean(of_seeds: Sequence[Mapping[int, float]]) -> tuple[list[int], list[float]]:
    """Mean over seeds at the steps that all of them have; NaN where one diverged."""
    steps = sorted(set.intersection(*(set(curve) for curve in of_seeds)))
    return steps, [float(np.mean([curve[step] for curve in of_seeds])) for step in steps]


def _colours(sizes: Sequence[int]) -> list[str]:
    return [CYCLE[index % len(CYCLE)] for index in range(len(sizes))]


# ---------------------------------------------------------------------- tables


def account_table(summary: Mapping[str, Any]) -> Table:
    """The account at the end of the runs."""
    names = {**{term: label for term, (label, _, _) in TERMS.items()}, "remainder": "left over"}
    rows = [[size, *(estimate(found[term], ".3g") for term in names)] for size, found in summary["account"].items()]
    return Table(["B", *names.values()], rows, "Sums over the whole run; mean ± standard error over seeds.")


def single_steps_table(summary: Mapping[str, Any], lr: float) -> Table:
    """What drawn steps change over what is predicted, by batch size and η."""
    rows = [
        [
            size,
            f"{float(rate) * lr:g}",
            estimate(found["predicted"], ".2e"),
            estimate(found["drawn"], ".2e"),
            estimate(found["drawn_over_predicted"], ".2f", missing="–"),
        ]
        for size, by_rate in summary["single_steps"].items()
        for rate, found in by_rate.items()
    ]
    columns = ["B", "η", "predicted", "drawn", "drawn / predicted"]
    return Table(columns, rows, "Expected change of the loss in a step; mean ± standard error over seeds.")


def matrices_table(summary: Mapping[str, Any]) -> Table:
    """C, F and H at the minimum and at the ends."""
    places = {"minimum": "minimum", **{size: f"B = {size}" for size in summary["batch_size"]}}
    figures = {
        **{f"trace/{name}": f"Tr {name}" for name in "CFH"},
        **{f"largest/{name}": f"λ₁({name})" for name in "CFH"},
        **{f"cosine/{pair}": f"cos({pair.replace('/', ', ')})" for pair in ("C/F", "C/H", "F/H")},
        **{f"overlap/{pair}": f"overlap({pair.replace('/', ', ')})" for pair in ("C/F", "C/H", "F/H")},
    }
    rows = [
        [label, *(estimate(summary["matrices"][place][name], ".3g") for place in places)]
        for name, label in figures.items()
    ]
    return Table(["", *places.values()], rows, "C at B = 1: of another B only its trace and λ₁ differ, by 1/B.")


def correlation_table(summary: Mapping[str, Any]) -> Table:
    """Rank correlation of sharpness and test accuracy."""
    rows = [
        [
            "all of a seed's runs" if size == "all" else f"B = {size}",
            number(found["value"], "+.2f"),
            ", ".join(number(found[end], "+.2f") for end in ("low", "high")),
        ]
        for size, found in summary["correlation"].items()
    ]
    caption = "Spearman's, mean over seeds by Fisher's z; 95 % t interval over seeds."
    return Table(["iterates", "rank correlation", "95 % interval"], rows, caption)


# ---------------------------------------------------------------------- text


def _about(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What ran on what."""
    minimum = summary["minimum"]
    return (
        f"Preset {summary['preset']}: a network of 2,118 parameters ({config['activation']}) on "
        f"{config['clean']:,} images of {summary['data']['train']['name']} and {config['corrupted']:,} more with "
        f"random labels. {config['gd_steps']:,} steps of gradient descent, whose rate falls to 0, end at a loss of "
        f"{estimate(minimum['loss'], '.3f')} and ‖ḡ‖² = {estimate(minimum['gradient/squared_norm'], '.2g')}; from "
        f"there SGD takes {config['steps']:,} steps at η = {config['lr']:g}. {seeds_text(summary['seeds'])}."
    )


def _lead(summary: Mapping[str, Any]) -> str:
    matrices = summary["matrices"]["minimum"]
    gains = [found["gain"]["value"] for found in summary["alignment"].values()]
    known = [gain for gain in gains if gain is not None]
    by = f"{min(known):.2f} to {max(known):.2f}" if known else "an unknown number of"
    cosines = {pair: number(matrices[f"cosine/{pair}"]["value"], ".2f") for pair in ("C/H", "F/H")}
    traces = {name: number(matrices[f"trace/{name}"]["value"], ".3g") for name in "CFH"}
    return (
        f"At the minimum cos(C, H) = {cosines['C/H']} and cos(F, H) = {cosines['F/H']}; Tr C, Tr F and Tr H are "
        f"{traces['C']}, {traces['F']} and {traces['H']}. At the ends of the runs A is {by} times that of shuffled "
        f"residuals ({seeds_text(summary['seeds'])})."
    )
