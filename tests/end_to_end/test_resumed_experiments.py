"""An experiment stopped at any moment and resumed leaves the same bytes."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import noisescape as ns
from noisescape.errors import CorruptFileError
from noisescape.experiments.protocols import session
from noisescape.runs.run import Run
from resumed_experiments import (
    EXPERIMENTS,
    QUICK,
    assert_equal_runs,
    contents,
    every_experiment,
    perform,
    stop_within,
    stopped_at_write,
    tolerant,
)
from resuming import Stop
from slowness import quick


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of an experiment that nothing came between."""
    memo: dict[str, Path] = {}

    def get(experiment: str) -> Path:
        if experiment not in memo:
            memo[experiment] = perform(experiment, tmp_path_factory.mktemp("whole") / "run").path
        return memo[experiment]

    return get


@tolerant
@pytest.mark.parametrize("experiment", quick([*QUICK, "toy-2d", "noise-knob"], EXPERIMENTS))
def test_an_experiment_leaves_the_same_bytes_each_time(
    experiment: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = contents(whole(experiment))
    assert {"metrics.parquet", "summary.json"} < expected.keys() | {"checkpoints"}
    assert_equal_runs(perform(experiment, tmp_path / "again").path, expected)


@pytest.mark.slow
@tolerant
@pytest.mark.parametrize("named", [False, True], ids=["before it has its name", "after"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_stopped_at_any_file_it_goes_on_to_the_same_bytes(
    experiment: str,
    named: bool,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = contents(whole(experiment))
    for number in itertools.count(step=3 if experiment == "digits" else 1):
        out = tmp_path / str(number)
        if not stopped_at_write(experiment, out, number, named, monkeypatch):
            break
        begun = (out / "run.json").read_bytes() if (out / "run.json").exists() else None
        assert_equal_runs(perform(experiment, out, resume=True).path, expected, f"stopped at file {number}")
        assert begun in (None, (out / "run.json").read_bytes()), "who began it when stays as it was"
        shutil.rmtree(out)
    assert number > EXPERIMENTS[experiment][2] + 3, "a file for each task, and those of the run"


@tolerant
@every_experiment
def test_stopped_again_and_again_it_ends_all_the_same(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(1)
    stops = 0
    while stopped_at_write(
        experiment, tmp_path / "run", chance.randrange(7), chance.random() < 0.5, monkeypatch, resume=stops > 0
    ):
        stops += 1
    assert stops >= 2
    assert_equal_runs(tmp_path / "run", contents(whole(experiment)))


WITHIN = quick(
    [
        *[("toy-2d", 0, 2), ("toy-2d", 10, 12), ("one-hidden-layer", 0, 2), ("one-hidden-layer", 3, 0)],
        ("gd-sharpness", 1, 4),
    ],
    [
        *itertools.product(["toy-2d"], [0, 3, 10, 17], [2, 12]),
        *itertools.product(["one-hidden-layer"], [0, 1, 2, 3], [0, 1, 2]),
        *[
            ("digits", task, step)
            for task, step in [(0, 3), (1, 11), (2, 2), (3, 6), (4, 5), (5, 3), (6, 6), (7, 3)]
        ],
        *[("noise-knob", 0, 3), ("noise-knob", 1, 2), ("noise-knob", 2, 5), ("gd-sharpness", 0, 3)],
        *[("quantities", 0, 3), ("quantities", 2, 2)],
        *[("matched-loss", 0, 20), ("matched-loss", 1, 7), ("matched-loss", 4, 12)],
    ],
)


@tolerant
@pytest.mark.parametrize(("experiment", "task", "step"), WITHIN)
def test_stopped_within_a_task_it_goes_on_there_to_the_same_bytes(
    experiment: str,
    task: int,
    step: int,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, task, step)
        with pytest.raises(Stop):
            perform(experiment, out)
    assert len(list((out / "tasks").glob("*.done.safetensors"))) == task
    partial = len(list((out / "tasks").glob("*.partial.safetensors")))
    assert partial == (step > 0)
    done = {file: file.stat().st_mtime_ns for file in (out / "tasks").glob("*.done.safetensors")}
    # once more, in a task after that one: what was done is left alone
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, 1, 2)
        stopped_again = False
        try:
            perform(experiment, out, resume=True)
        except Stop:
            stopped_again = True
    if stopped_again:
        assert {file: file.stat().st_mtime_ns for file in done} == done
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@tolerant
@pytest.mark.parametrize("experiment", quick(["toy-2d"], ["digits"]))
def test_a_dynamics_that_breaks_loses_no_finished_task(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("a bug in leading noise")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ns.GLDLeading, "noise", broken)
        with pytest.raises(RuntimeError, match="a bug in leading noise"):
            perform(experiment, out)
    assert not Run.open(out).complete
    assert list((out / "tasks").glob("*.done.safetensors"))
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@tolerant
@every_experiment
def test_a_run_stopped_while_tidying_up_is_complete_and_is_tidied(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(folder: Path, *_arguments: Any, **_options: Any) -> None:
        next(Path(folder).iterdir()).unlink()
        raise Stop

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(session.shutil, "rmtree", stop)
        with pytest.raises(Stop):
            perform(experiment, out)
    assert Run.open(out).complete
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@tolerant
@every_experiment
def test_resuming_a_complete_run_changes_nothing(experiment: str, whole: Callable[[str], Path]) -> None:
    out = whole(experiment)
    before = contents(out, without=()), {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert perform(experiment, out, resume=True).complete
    assert (contents(out, without=()), {file: file.stat().st_mtime_ns for file in out.rglob("*")}) == before


@tolerant
@pytest.mark.parametrize(
    ("experiment", "place"),
    quick([("toy-2d", "empty"), ("one-hidden-layer", "nowhere")], [("toy-2d", "nowhere"), ("digits", "empty")]),
)
def test_resuming_where_there_is_no_run_starts_one(
    experiment: str, place: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert_equal_runs(perform(experiment, tmp_path / place, resume=True).path, contents(whole(experiment)))


@tolerant
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    quick(
        [
            ("toy-2d", {"seed": 4}, "seed = 3 there, 4 now"),
            ("toy-2d", {"steps": 13, "lr": 0.004}, r"lr = 0\.005 there, 0\.004 now, steps = 12 there, 13 now"),
            ("toy-2d", {"preset": "as-published"}, "preset = quick there, as-published now"),
            ("toy-2d", {"control_replicas": 3}, "control_replicas = 2 there, 3 now"),
            ("one-hidden-layer", {"epochs": 4}, "epochs = 3 there, 4 now"),
            ("one-hidden-layer", {"widths": (6, 4)}, r"widths = \[4, 6\] there, \[6, 4\] now"),
        ],
        [
            ("digits", {"rho": 0.1}, r"rho = None there, 0\.1 now"),
            ("noise-knob", {"penalty": 2.0}, r"penalty = 1\.0 there, 2\.0 now"),
            ("matched-loss", {"left": 0.02}, r"left = 0\.01 there, 0\.02 now"),
            ("quantities", {"activation": "gelu"}, "activation = relu there, gelu now"),
            ("digits", {"gd_steps": 13}, "gd_steps = 12 there, 13 now"),
            ("digits", {"seeds": 3}, "seeds = 2 there, 3 now"),
            ("digits", {"dynamics": ("gd",)}, r"dynamics = \['gd', .*\] there, \['gd'\] now"),
        ],
    ),
)
def test_other_constants_are_refused_by_name(
    experiment: str,
    changes: dict[str, Any],
    message: str,
    complete: bool,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    if complete:
        shutil.copytree(whole(experiment), out)
    else:
        assert stopped_at_write(experiment, out, 3, True, monkeypatch)
    before = contents(out, without=())
    with pytest.raises(ValueError, match=f"cannot be continued with other constants: {message}") as caught:
        perform(experiment, out, resume=True, **changes)
    assert "\n" not in str(caught.value)
    assert contents(out, without=()) == before


def test_another_experiments_run_is_refused(whole: Callable[[str], Path]) -> None:
    out = whole("toy-2d")
    before = contents(out, without=())
    with pytest.raises(ValueError, match="is a run of 'toy-2d', not of 'one-hidden-layer'"):
        perform("one-hidden-layer", out, resume=True)
    assert contents(out, without=()) == before


def test_a_run_is_not_begun_again_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    assert stopped_at_write("toy-2d", out, 3, True, monkeypatch)
    before = contents(out, without=())
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        perform("toy-2d", out)
    assert contents(out, without=()) == before


@tolerant
@pytest.mark.parametrize(
    ("experiment", "damage", "kind"),
    quick(
        [("toy-2d", "cut", "partial"), ("one-hidden-layer", "flipped", "done")],
        [
            *itertools.product(["toy-2d"], ["flipped", "cut", "empty", "of another program"], ["done", "partial"]),
            *itertools.product(["one-hidden-layer", "digits"], ["flipped"], ["done", "partial"]),
        ],
    ),
)
def test_a_damaged_task_is_named_and_done_again_once_removed(
    experiment: str,
    kind: str,
    damage: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, 2, 2)
        with pytest.raises(Stop):
            perform(experiment, out)
    victim = min((out / "tasks").glob(f"*.{kind}.safetensors"))
    content = victim.read_bytes()
    middle = len(content) // 2
    victim.write_bytes(
        {
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut": content[:middle],
            "empty": b"",
            "of another program": b"PK" + content,
        }[damage]
    )
    kept = {name: content for name, content in contents(out, without=()).items() if ".done." in name}
    with pytest.raises(CorruptFileError) as caught:
        perform(experiment, out, resume=True)
    assert str(caught.value).startswith(f"{victim} cannot be read (")
    assert "Remove it, and --resume does that part again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kept.items() <= contents(out, without=()).items(), "what is whole stays"
    assert not Run.open(out).complete
    victim.unlink()
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@pytest.mark.slow
@tolerant
@every_experiment
def test_the_number_of_processes_does_not_matter(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = contents(whole(experiment))
    assert_equal_runs(perform(experiment, tmp_path / "two", jobs=2).path, expected)
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, task=min(2, EXPERIMENTS[experiment][2] - 1), step=2)
        with pytest.raises(Stop):
            perform(experiment, tmp_path / "changed")
    assert_equal_runs(perform(experiment, tmp_path / "changed", jobs=2, resume=True).path, expected)
