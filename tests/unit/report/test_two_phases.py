"""The two phases on rows made by hand: which numbers are compared, and what is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from noisescape.report.style import figure_style
from noisescape.report.two_phases import OUTSIDE, TwoPhases, draw_two_phases, two_phases, two_phases_table

Rows = list[dict[str, Any]]


def rows_of(seed: int, phase: str, dynamics: str, curve: dict[int, tuple[float, float]], replica: int = 0) -> Rows:
    return [
        {
            "phase": phase,
            "seed": seed,
            "dynamics": dynamics,
            "replica": replica,
            "step": step,
            "metric": metric,
            "value": value,
        }
        for step, values in curve.items()
        for metric, value in zip(("train_accuracy", "test_accuracy"), values, strict=True)
    ]


def a_seed(seed: int, settled: int, above: float) -> Rows:
    """Descent to a minimum after ``settled`` more steps, SGD's two legs, and rows that must not count."""
    return [
        *rows_of(seed, "descent", "gd", {0: (0.1, 0.1), 200: (0.9, 0.7), 400: (0.99, 0.6)}),
        *rows_of(seed, "minimum", "gd", {400 + settled: (1.0, 0.64 + above)}),
        *rows_of(seed, "escape", "sgd", {0: (1.0, 0.64 + above), 200: (0.5, 0.55), 400: (0.8, 0.75 + above)}),
        *rows_of(seed, "escape", "sgd", {650: (1.0, 0.70 + above)}),
        *rows_of(seed, "escape", "sgd", {200: (0.0, 0.99), 9000: (0.0, 0.99)}, replica=1),
        *rows_of(seed, "escape", "gd", {500: (0.0, 0.99)}),
        *rows_of(seed, "escape", "gld-full", {200: (0.0, 0.99)}),
        *rows_of(seed, "matched", "sgd", {8000: (0.0, 0.99)}),
    ]


ROWS = [*a_seed(1, 120, 0.02), *a_seed(0, 0, 0.0)]


@pytest.fixture
def seeds() -> list[TwoPhases]:
    return two_phases(ROWS)


def test_every_stage_is_that_of_the_first_run_of_its_seed(seeds: list[TwoPhases]) -> None:
    assert [seed.switch for seed in seeds] == [400, 520]
    for seed, above in zip(seeds, (0.0, 0.02), strict=True):
        assert seed.at("fitted") == (seed.switch, 1.0, 0.64 + above)
        assert seed.at("highest") == (seed.switch + 400, 0.8, 0.75 + above)
        assert seed.at("end") == (seed.switch + 650, 1.0, 0.70 + above)


def test_what_sgd_began_with_is_not_its_highest() -> None:
    rows = [
        *rows_of(0, "minimum", "gd", {400: (1.0, 0.8)}),
        *rows_of(0, "escape", "sgd", {0: (1.0, 0.8), 200: (0.5, 0.6), 400: (0.7, 0.7)}),
    ]
    [seed] = two_phases(rows)
    assert seed.at("highest") == (800, 0.7, 0.7)


def test_the_table_has_ours_and_theirs(seeds: list[TwoPhases]) -> None:
    table = two_phases_table(seeds, OUTSIDE)
    assert table.columns[1:] == ["step", "training acc., %", "test acc., %", "poster, %", "a rewrite, %"]
    assert [row[1:] for row in table.rows] == [
        ["460", "100.0 ± 0.0", "65.0 ± 1.0", "≈ 65.5 at step 2,000", "≈ 66"],
        ["860", "80.0 ± 0.0", "76.0 ± 1.0", "≈ 74", "–"],
        ["1,110", "100.0 ± 0.0", "71.0 ± 1.0", "≈ 70 at step 14,000", "≈ 70"],
    ]
    assert len(two_phases_table(seeds).columns) == 4
    assert two_phases_table(two_phases(ROWS) * 2).rows[0][3] == "65.0 ± 0.6", "several runs, joined"


def test_a_run_of_sgd_that_diverged_has_no_highest() -> None:
    rows = [
        *rows_of(0, "minimum", "gd", {400: (1.0, 0.8)}),
        *rows_of(0, "escape", "sgd", {0: (1.0, 0.8), 130: (math.nan, math.nan)}),
    ]
    phases = two_phases(rows)
    assert [row[3] for row in two_phases_table(phases).rows] == ["80.0 ± ?", "–", "–"]
    assert isinstance(draw_two_phases(phases), Figure)


def test_the_curves_their_mean_and_the_figures_of_others_are_drawn(seeds: list[TwoPhases]) -> None:
    with figure_style():
        left, right = draw_two_phases(seeds, OUTSIDE).axes
    thick = [line for line in right.lines if line.get_linewidth() == 1.8]
    assert [line.get_label() for line in thick] == ["training accuracy", "test accuracy"]
    [*_, (end, mean)] = thick[1].get_xydata()
    assert (end, mean) == (650, pytest.approx(0.71))
    descent = next(line for line in left.lines if line.get_label() == "test accuracy")
    # the one seed was at its minimum where the other still had 120 steps to go: that far both have a value
    assert descent.get_xydata()[-1] == pytest.approx((400, (0.64 + 0.6) / 2))
    crosses = [axis.lines[-1] for axis in (left,)] + [line for line in right.lines if line.get_marker() == "X"]
    assert [tuple(np.ravel(line.get_xydata())) for line in crosses] == [(2000, 0.655), (12_000, 0.70)]
    [dotted] = [line for line in right.lines if line.get_linestyle() == ":"]
    assert dotted.get_ydata()[0] == 0.74
    assert not any(line.get_marker() == "X" for axis in draw_two_phases(seeds).axes for line in axis.lines)
