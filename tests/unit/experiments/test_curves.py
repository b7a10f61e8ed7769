"""Recorded rows as curves: by name and seed, in the order of steps."""

from __future__ import annotations

import math

import pytest

from noisescape.experiments.curves import Curves

ROWS = [
    {"phase": "escape", "dynamics": "sgd", "metric": metric, "seed": seed, "step": step, "value": value}
    for metric, seed, step, value in (
        ("loss", 0, 5, 2.0),
        ("loss", 0, 0, 1.0),
        ("loss", 2, 0, 3.0),
        ("a", 1, 0, 9.0),
    )
]
CURVES = Curves(ROWS, 3)


def test_curves_are_by_seed_and_ordered_by_step() -> None:
    assert CURVES.of("escape", "sgd", "loss") == [{0: 1.0, 5: 2.0}, {}, {0: 3.0}]
    assert [*CURVES.of("escape", "sgd", "loss")[0]] == [0, 5]
    assert CURVES.of("escape", "gd", "loss") == [{}, {}, {}]
    assert CURVES.names == [("escape", "sgd", "a"), ("escape", "sgd", "loss")]


def test_a_seed_that_stopped_before_has_no_number() -> None:
    assert CURVES.at(5, "escape", "sgd", "loss") == pytest.approx([2.0, math.nan, math.nan], nan_ok=True)


def test_other_columns_may_name_a_curve() -> None:
    assert Curves(ROWS, 3, by=("metric",)).of("a") == [{}, {0: 9.0}, {}]


def test_some_of_the_seeds_in_an_order_of_their_own() -> None:
    chosen = CURVES.only((2, 0))
    assert chosen.of("escape", "sgd", "loss") == [{0: 3.0}, {0: 1.0, 5: 2.0}]
    assert chosen.at(5, "escape", "sgd", "loss") == pytest.approx([math.nan, 2.0], nan_ok=True)
    assert chosen.names == CURVES.names
    assert len(CURVES.of("escape", "sgd", "loss")) == 3
