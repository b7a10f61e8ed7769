"""What is recorded is part of a run: other recorders are another run."""

from __future__ import annotations

import dataclasses
import functools
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import bowl_risk
from noisescape.risk import EmpiricalRisk
from noisescape.simulation import recorders
from noisescape.simulation.identity import described
from noisescape.simulation.recorders import Recorder
from resumed_experiments import DIGITS
from resuming import go, kept, network, wobble


@pytest.mark.parametrize(
    "record",
    [
        {"loss": recorders.loss, "more": recorders.loss},
        {},
        {"norm": wobble},
        {"loss": recorders.at_steps(recorders.loss, [8])},
    ],
    ids=["one more", "none", "others", "at other steps"],
)
def test_what_is_recorded_is_part_of_the_run(record: dict[str, Recorder], checkpoint: Path) -> None:
    """Else the records would have holes, or be of something nobody asked for."""
    kept(checkpoint)
    with pytest.raises(ValueError, match=r"is of another run .*record"):
        go(checkpoint, record=record)


def scaled_loss(factor: float) -> Recorder:
    return lambda risk, theta: factor * recorders.loss(risk, theta)


def other_loss(factor: float) -> Recorder:
    return lambda risk, theta: factor + recorders.loss(risk, theta)


@pytest.mark.parametrize(
    "other",
    [
        other_loss(2.0),
        scaled_loss(3.0),
        recorders.on(bowl_risk(), recorders.loss),
        recorders.sharpness(0.1),
        recorders.at_steps(scaled_loss(2.0), range(0, 9, 2)),
    ],
    ids=["other code", "another constant", "of another risk", "another kind", "at those steps by itself"],
)
def test_another_recorder_of_the_same_name_is_another_run(other: Recorder, checkpoint: Path) -> None:
    kept(checkpoint, record={"watched": scaled_loss(2.0)})
    with pytest.raises(ValueError, match=r"is of another run \(.*(recorders|records) "):
        go(checkpoint, record={"watched": other})
    assert not go(checkpoint, record={"watched": scaled_loss(2.0)}).diverged


def test_recorders_are_told_apart_by_what_they_hold() -> None:
    table = {"a": 1}
    alike = [
        (recorders.sharpness(0.1), recorders.sharpness(0.1)),
        (recorders.on(bowl_risk(), recorders.accuracy), recorders.on(bowl_risk(), recorders.accuracy)),
        (functools.partial(wobble, factor=table), functools.partial(wobble, factor={"a": 1})),
        (recorders.at_steps(recorders.loss, [1]), recorders.at_steps(recorders.loss, [2])),  # the plan says so
    ]
    unlike = [
        (recorders.sharpness(0.1), recorders.sharpness(0.2)),
        (recorders.sharpness(0.1, seed=1), recorders.sharpness(0.1)),
        (recorders.on(network(), recorders.loss), recorders.on(network(labels=2), recorders.loss)),
        (functools.partial(wobble, factor=table), functools.partial(wobble, factor={"a": 2})),
        (recorders.loss, recorders.accuracy),
        (DIGITS.of_dynamics, dataclasses.replace(DIGITS, steps=7).of_dynamics),
        ({torch.ones(2)}, {torch.zeros(2)}),
    ]
    assert all(described(one) == described(other) for one, other in alike)
    assert all(described(one) != described(other) for one, other in unlike)


def test_a_recorder_that_holds_itself_is_described() -> None:
    def again(risk: EmpiricalRisk, theta: Tensor) -> Any:
        return again

    assert "…" in described(again)


def test_bytecode_of_another_python_is_not_compared(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(checkpoint, record={"watched": scaled_loss(2.0)})
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    assert not go(checkpoint, record={"watched": scaled_loss(2.0)}).diverged
