"""Dynamics that no figure knows of are drawn all the same."""

from __future__ import annotations

from noisescape.dynamics import DYNAMICS
from noisescape.report.style import COLOURS, CYCLE, LABELS, line_style


def test_a_dynamics_without_a_look_gets_its_name_and_a_colour_that_stays() -> None:
    assert LABELS["own"] == "own"
    assert COLOURS["own"] in CYCLE
    assert COLOURS["own"] == COLOURS["own"] != COLOURS["another"]
    assert line_style("own") == "--"


def test_every_dynamics_has_a_look_of_its_own() -> None:
    assert DYNAMICS.keys() <= LABELS.keys()
    assert len({COLOURS[name] for name in DYNAMICS}) == len(DYNAMICS)
