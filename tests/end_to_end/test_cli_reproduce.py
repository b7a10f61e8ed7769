"""Reproducing an experiment by its command: where it writes and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cli_calls import SMALLEST, TOY, Result, only_json, the_error
from noisescape.errors import FailedError
from noisescape.experiments.experiment import Experiment
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.toy_2d import Toy2DConfig
from noisescape.runs.run import Run
from run_files import ARMS, files


def test_json_is_one_object_with_the_six_rates(call: Callable[..., Result], tmp_path: Path) -> None:
    found = only_json(call(*TOY, "--json"))
    assert list(found["success"]) == ARMS
    for name in ARMS:
        rate = found["success"][name]
        assert rate.keys() == {"rate", "low", "high", "n"}
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
        assert rate["n"] == 20
        assert {found["controls"][control]["success"][name]["n"] for control in found["controls"]} == {10}
    run = Run.open(found["run"])
    assert run.path.resolve().parent == tmp_path / "runs"
    assert run.complete
    assert Path(found["report"]).is_file()


@pytest.mark.slow
def test_a_run_goes_where_it_is_sent_and_shows_a_table(call: Callable[..., Result], tmp_path: Path) -> None:
    result = call(*SMALLEST, "--control-replicas", 1, "--out", "here", "--seed", 5, "--preset", "as-published")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in (*ARMS, "rotated", "isotropic"))
    assert result.stdout.splitlines()[-1] == "report: here/report.html"
    run = Run.open(tmp_path / "here")
    assert (run.info["seed"], run.info["config"]["preset"]) == (5, "as-published")
    assert (run.info["config"]["replicas"], run.info["config"]["steps"]) == (2, 3)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "here" / "report.html").unlink()
    found = only_json(call("report", "here", "--json"))
    assert found == {"report": "here/report.html", **run.summary()}
    assert (tmp_path / "here" / "report.html").is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_a_preset_and_options_override_it(
    name: str, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def refused(self: Experiment, config: Any, out: Path, **_: Any) -> Run:
        made.append(config)
        raise FailedError("not now")

    monkeypatch.setattr(Experiment, "run", refused)
    repetitions = "replicas" if name == "toy-2d" else "seeds"
    for preset, expected in EXPERIMENTS[name].presets.items():
        for given, config in (([], expected), ([f"--{repetitions}", 7], replace(expected, **{repetitions: 7}))):
            group = "lab" if name in LABS else "reproduce"
            assert the_error(call(group, name, "--preset", preset, *given, "--quiet")) == "error: not now"
            assert made.pop() == config


@pytest.mark.slow
def test_quiet_shows_no_table(call: Callable[..., Result]) -> None:
    result = call(*SMALLEST, "--control-replicas", 0, "--quiet", "--out", "here")
    assert result.exit_code == 0
    assert result.stdout == "report: here/report.html\n"
    assert result.stderr == ""


def test_the_constants_are_printed_first_unless_asked_not_to(undrawn: None, call: Callable[..., Result]) -> None:
    printed = call(*SMALLEST, "--control-replicas", 0, "--out", "a")
    config = asdict(Toy2DConfig(replicas=2, control_replicas=0, steps=3))
    constants = ", ".join(f"{name} = {value}" for name, value in config.items())
    assert " ".join(printed.stdout.split()).startswith(f"toy-2d: {constants} ")
    for option in ("--quiet", "--json"):
        assert "update_trace =" not in call(*SMALLEST, "--control-replicas", 0, option).stdout


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    """A toy of the smallest size that stopped before its first task."""
    config = asdict(Toy2DConfig(replicas=2, control_replicas=1, steps=3))
    path = tmp_path / "runs" / "toy-2d-20260101-000000"
    return Run.create(path, experiment="toy-2d", config=config, seed=0)


RESUMED = [*SMALLEST, "--control-replicas", "1", "--resume"]


def test_without_a_place_the_latest_unfinished_run_is_resumed(
    begun: Run, undrawn: None, call: Callable[..., Result], tmp_path: Path
) -> None:
    earlier = Run.create(tmp_path / "runs" / "toy-2d-20250101-000000", experiment="toy-2d", config={}, seed=0)
    other = Run.create(tmp_path / "runs" / "digits-20270101-000000", experiment="digits", config={}, seed=0)
    found = only_json(call(*RESUMED, "--json"))
    assert Path(found["run"]).resolve() == begun.path.resolve()
    assert begun.complete
    assert not earlier.complete
    assert not other.complete
    assert len([*(tmp_path / "runs").iterdir()]) == 3


def test_with_nothing_to_resume_a_new_run_is_made(
    begun: Run, undrawn: None, call: Callable[..., Result], tmp_path: Path
) -> None:
    begun.write_summary({})
    begun.write_report("<p>done</p>")
    found = only_json(call(*RESUMED, "--json"))
    assert Path(found["run"]).resolve() != begun.path.resolve()
    assert Run.open(found["run"]).complete
    assert begun.summary() == {}


def test_the_run_at_a_place_is_resumed(
    begun: Run, undrawn: None, call: Callable[..., Result], tmp_path: Path
) -> None:
    found = only_json(call(*RESUMED, "--out", begun.path, "--json"))
    assert Path(found["run"]) == begun.path
    assert begun.complete
    again = only_json(call(*RESUMED, "--out", begun.path, "--json"))
    assert again == found, "timing and all: nothing was done"
    elsewhere = only_json(call(*RESUMED, "--out", "new", "--json"))
    assert Run.open(tmp_path / "new").complete
    assert {**elsewhere, **dict.fromkeys(("seconds", "task_seconds", "run", "report", "claims"))} == {
        **found,
        **dict.fromkeys(("seconds", "task_seconds", "run", "report", "claims")),
    }


def test_a_run_is_not_resumed_with_other_constants(begun: Run, call: Callable[..., Result]) -> None:
    before = files(begun.path)
    for place in ([], ["--out", begun.path]):
        message = the_error(call(*RESUMED, "--seed", 1, "--quiet", *place))
        assert "cannot be continued with other constants: seed = 0 there, 1 now" in message
        message = the_error(call(*RESUMED, "--steps", 4, "--quiet", *place))
        assert "steps = 3 there, 4 now" in message
    assert "is a run of 'toy-2d', not of 'digits'" in the_error(
        call("reproduce", "digits", "--resume", "--out", begun.path, "--quiet")
    )
    assert files(begun.path) == before


def test_without_resume_a_begun_run_is_refused(begun: Run, call: Callable[..., Result]) -> None:
    message = the_error(call(*RESUMED[:-1], "--out", begun.path, "--quiet"))
    assert "already exists and is not empty" in message
