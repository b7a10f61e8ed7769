"""The program where there is no room, no memory, or no run."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noisescape.cli import app
from noisescape.runs import tasks
from noisescape.runs.local_engine import Local
from noisescape.runs.run import Run
from resumed_experiments import contents

SMALLEST = ["reproduce", "toy-2d", "--replicas", "2", "--control-replicas", "0", "--steps", "3", "--jobs", "1"]


def without_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when that file is to be written."""
    replace = Path.replace

    def give_name(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", give_name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["published-gld-leading-0.done.safetensors", "summary.json", "run.json", "metrics.parquet", "report.html"],
)
@pytest.mark.parametrize("place", [[], ["--out", "here"]], ids=["by default", "in --out"])
def test_on_a_full_disk_the_program_says_so_in_a_line_and_can_be_resumed(
    name: str, place: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        without_room(name, patch)
        full = CliRunner().invoke(app, [*SMALLEST, *place])
    assert full.exit_code == 1
    [line] = full.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"/{name}: what was written before is intact; make room, then continue with --resume" in line
    assert not [file for file in tmp_path.rglob(".noisescape-*") if file.is_file()]
    resumed = CliRunner().invoke(app, [*SMALLEST, *place, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    [run] = (tmp_path / "runs").iterdir() if not place else [tmp_path / "here"]
    assert Run.open(run).complete
    assert (run / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directory", "file", "earlier run"])
def test_what_merely_sounds_like_a_run_is_not_resumed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    if kind == "directory":
        (runs / "toy-2d-thesis").mkdir()
        (runs / "toy-2d-thesis" / "mine.txt").touch()
    elif kind == "file":
        (runs / "toy-2d-table.csv").touch()
    else:
        assert CliRunner().invoke(app, SMALLEST).exit_code == 0
    before = contents(runs, without=())
    assert CliRunner().invoke(app, [*SMALLEST, "--resume"]).exit_code == 0
    after = contents(runs, without=())
    assert before.items() <= after.items()
    [summary] = [name for name in after.keys() - before.keys() if name.endswith("summary.json")]
    assert re.fullmatch(r"toy-2d-\d{8}-\d{6}(-\d+)?/summary\.json", summary)


def be_killed(*, checkpoint: Path) -> tasks.Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return tasks.Outcome()


def be_done(*, checkpoint: Path) -> tasks.Outcome:
    return tasks.Outcome([{"x": 1}])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_the_system_killed_is_told_in_a_line(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", experiment="toy", config={}, seed=0)
    both = [tasks.Task("first", be_done, ()), tasks.Task("second", be_killed, ())]
    tasks.perform(run, both[:1], engine=Local(2), title="", progress=False)
    with pytest.raises(RuntimeError, match=r"a worker process was killed.* continue with --resume") as caught:
        tasks.perform(run, both, engine=Local(2), title="", progress=False)
    assert "\n" not in str(caught.value)
    assert contents(run.path).keys() == {"tasks/first.done.safetensors"}
