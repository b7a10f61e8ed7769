"""Gradient descent fits, random labels too; SGD leaves that and fits again: accuracy in both, beside others'.

Of matched-loss runs: the descent to the minimum, and the first run of SGD from it in every seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MplFigure
from matplotlib.ticker import PercentFormatter

from noisescape.experiments.experiment import seeds_text
from noisescape.experiments.statistics import mean_over
from noisescape.report.page import Table
from noisescape.report.style import legend_outside, new_figure
from noisescape.report.tables import estimate

TRAINING, TEST = "train_accuracy", "test_accuracy"
STAGES = {
    "fitted": "gradient descent has fitted",
    "highest": "highest under SGD",
    "end": "SGD, at the end",
}
"""What is compared, by name."""
COLOURED = {TRAINING: ("#3b6fb6", "training accuracy"), TEST: ("#d62728", "test accuracy")}


@dataclass(frozen=True)
class Outside:
    """Test accuracies that others found.

    Attributes:
        source: who.
        accuracy: by stage, as far as it is told.
        steps: by stage, from the initialisation on; none, or at least that at which gradient descent has fitted.
    """

    source: str
    accuracy: Mapping[str, float]
    steps: Mapping[str, int] = field(default_factory=dict)


POSTER = Outside("poster", {"fitted": 0.655, "highest": 0.74, "end": 0.70}, {"fitted": 2000, "end": 14_000})
"""Read off the curve on the poster of Wu, Ma and E, "How SGD selects the global minima in over-parameterized
learning" (NeurIPS 2018): FashionMNIST with random labels, gradient descent, then SGD; at the end training accuracy
is 100 % again."""
REWRITE = Outside("a rewrite", {"fitted": 0.66, "end": 0.70})
"""Of the paper's experiment, by a reader, who quotes the first figure and sees the second."""
OUTSIDE = (POSTER, REWRITE)


@dataclass(frozen=True)
class TwoPhases:
    """One seed.

    Attributes:
        descent: metric ↦ step ↦ value of gradient descent; the last step is the minimum.
        escape: the same of SGD, steps counted from the minimum.
    """

    descent: Mapping[str, Mapping[int, float]]
    escape: Mapping[str, Mapping[int, float]]

    @property
    def switch(self) -> int:
        """The step of gradient descent at which SGD took over."""
        return max(self.descent[TEST])

    def at(self, stage: str) -> tuple[int, float, float]:
        """Step from the initialisation, training and test accuracy; NaN where SGD has nothing finite."""
        if stage == "fitted":
            return self.switch, self.descent[TRAINING][self.switch], self.descent[TEST][self.switch]
        test = {step: value for step, value in self.escape[TEST].items() if step > 0 and math.isfinite(value)}
        if not test:
            return self.switch, math.nan, math.nan
        step = max(test, key=test.__getitem__) if stage == "highest" else max(test)
        return self.switch + step, self.escape[TRAINING][step], test[step]


def two_phases(rows: Iterable[Mapping[str, Any]]) -> list[TwoPhases]:
    """The phases of every seed in a run's rows, in the order of the seeds; those of several runs can be joined."""
    found: dict[int, tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]] = {}
    of_phase = {("descent", "gd"): 0, ("minimum", "gd"): 0, ("escape", "sgd"): 1}
    for row in rows:
        part = of_phase.get((row["phase"], row["dynamics"]))
        if part is not None and row["replica"] == 0 and row["metric"] in COLOURED:
            curves = found.setdefault(row["seed"], ({}, {}))[part]
            curves.setdefault(row["metric"], {})[row["step"]] = row["value"]
    return [
        TwoPhases(*({metric: dict(sorted(curve.items())) for metric, curve in part.items()} for part in parts))
        for _, parts in sorted(found.items())
    ]


def two_phases_table(seeds: Sequence[TwoPhases], outside: Sequence[Outside] = ()) -> Table:
    """Test accuracy when gradient descent has fitted, at its highest under SGD and at the end, ours and others'."""
    rows = []
    for stage, title in STAGES.items():
        steps, training, test = zip(*(seed.at(stage) for seed in seeds), strict=True)
        rows.append(
            [
                title,
                f"{round(sum(steps) / len(steps)):,}",
                _percent(training),
                _percent(test),
                *(_told(other, stage) for other in outside),
            ]
        )
    columns = ["", "step", "training acc., %", "test acc., %", *(f"{other.source}, %" for other in outside)]
    caption = (
        f"Mean ± standard error over {seeds_text(len(seeds))}; steps from the initialisation. The highest is each "
        "seed's own, known with hindsight: it lies over what a step chosen beforehand would give."
    )
    return Table(columns, rows, caption)


def draw_two_phases(seeds: Sequence[TwoPhases], outside: Sequence[Outside] = ()) -> MplFigure:
    """Training and test accuracy of gradient descent, then of SGD; thin lines are seeds, thick ones their mean."""
    figure = new_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.2))
    for metric, (colour, label) in COLOURED.items():
        _lines(left, [seed.descent[metric] for seed in seeds], colour, label)
        _lines(right, [seed.escape[metric] for seed in seeds], colour, label)
    for other in outside:
        for stage, step in other.steps.items():
            axis, before = (left, 0) if stage == "fitted" else (right, other.steps["fitted"])
            named = f"test accuracy, {other.source}" if stage == "end" else None
            axis.plot(
                step - before, other.accuracy[stage], "X", color="black", markersize=8, label=named, clip_on=False
            )
        if other.steps and "highest" in other.accuracy:
            named = f"on the way, {other.source}"
            right.axhline(other.accuracy["highest"], color="black", linewidth=0.9, linestyle=":", label=named)
    left.set(xlabel="step of gradient descent", ylabel="accuracy", xlim=(0, None))
    right.set(xlabel="step of SGD from the minimum", xlim=(0, None))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    legend_outside(figure, right)
    return figure


def _lines(axis: Axes, curves: Sequence[Mapping[int, float]], colour: str, label: str) -> None:
    """Every seed's curve and, as far as all go, their mean, between the steps recorded by straight lines."""
    known = [
        finite
        for curve in curves
        if (finite := {step: value for step, value in curve.items() if math.isfinite(value)})
    ]
    for curve in known:
        axis.plot([*curve], [*curve.values()], color=colour, linewidth=0.5, alpha=0.5)
    if known:
        common = max(map(min, known)), min(map(max, known))
        steps = sorted({step for curve in known for step in curve if common[0] <= step <= common[1]})
        mean = np.mean([np.interp(steps, [*curve], [*curve.values()]) for curve in known], axis=0)
        axis.plot(steps, mean, color=colour, linewidth=1.8, label=label)


def _percent(values: Sequence[float]) -> str:
    """Mean ± standard error, as a run's summary would have them: without what is not finite."""
    found = mean_over(values)
    known = {"value": found.value, "stderr": found.stderr}
    return estimate({name: x if math.isfinite(x) else None for name, x in known.items()}, ".1f", 100, missing="–")


def _told(other: Outside, stage: str) -> str:
    if stage not in other.accuracy:
        return "–"
    told = f"≈ {100 * other.accuracy[stage]:g}"
    return f"{told} at step {other.steps[stage]:,}" if stage in other.steps else told
