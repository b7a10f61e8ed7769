"""Signals to the program and to its workers: a line, an exit code, no process left, and a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli_calls import Result
from noisescape.cli import app
from noisescape.experiments.protocols import toy_2d
from noisescape.experiments.toy_2d import TOY_2D, Toy2DConfig
from noisescape.runs.run import Run
from resumed_experiments import TOY, assert_equal_runs, contents
from slowness import quick

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

GOES_ON = "interrupted: what was finished is kept; the same command with --resume goes on with it\n"
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.mark.parametrize("name", quick(["SIGTERM"], CODES))
def test_a_signal_ends_a_run_with_a_line_and_its_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(TOY_2D.presets, "quick", TOY)
    block = toy_2d.simulate_block
    number = getattr(signal, name)
    before = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    inherited = signal.signal(number, before)  # where the tests run in the background it may be ignored
    request.addfinalizer(lambda: signal.signal(number, inherited))

    def interrupted(*arguments: object, checkpoint: Path) -> object:
        if checkpoint.name.startswith("published-gld-diagonal"):
            signal.raise_signal(number)
        return block(*arguments, checkpoint=checkpoint)

    monkeypatch.setattr(toy_2d, "simulate_block", interrupted)
    command = ["reproduce", "toy-2d", "--quiet", "--jobs", "1", "--seed", str(TOY.seed)]
    found = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run")])
    assert (found.exit_code, found.stderr) == (CODES[name], GOES_ON)
    assert signal.getsignal(number) == before
    assert {path.name for path in (tmp_path / "run" / "tasks").iterdir()} == {
        "published-gd-0.done.safetensors",
        "published-gld-constant-0.done.safetensors",
    }
    assert not list(tmp_path.rglob(".noisescape-*"))
    monkeypatch.setattr(toy_2d, "simulate_block", block)
    TOY_2D.run(TOY, tmp_path / "run", jobs=1, resume=True, progress=False)
    TOY_2D.run(TOY, tmp_path / "whole", jobs=1, progress=False)
    assert_equal_runs(tmp_path / "run", contents(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_somebody_ignores_stays_ignored(name: str, call: Callable[..., Result]) -> None:
    """As nohup and batch systems have it."""
    before = signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        assert call("measure", "laboratory:make_network", "--batch-size", 3, "--fast", "--quiet").exit_code == 0
        assert signal.getsignal(getattr(signal, name)) is signal.SIG_IGN
    finally:
        signal.signal(getattr(signal, name), before)


# ------------------------------------------------------------------------------------------- with worker processes

CONFIG = Toy2DConfig(replicas=20, control_replicas=5, steps=150)
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from cli_calls import Result
from noisescape.cli import app
from noisescape.simulation.loop import simulate
simulate.__kwdefaults__["checkpoint_seconds"] = 0.02
app(prog_name="noisescape")
"""
MOMENTS = {"begun": "run.json", "some done": "tasks/*.done.safetensors"}
CELLS = [
    *(("program", name, moment) for name in ("SIGINT", "SIGTERM", "SIGKILL") for moment in MOMENTS),
    ("group", "SIGINT", "some done"),
    *(("worker", name, "some done") for name in ("SIGINT", "SIGTERM", "SIGKILL")),
]


@pytest.mark.parametrize("count", [len(CELLS)], ids=[f"{len(CELLS)} cells"])
def test_the_matrix_is_whole(count: int) -> None:
    assert count == 10


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a run that nobody disturbed."""
    return contents(TOY_2D.run(CONFIG, tmp_path_factory.mktemp("whole") / "run", jobs=1, progress=False).path)


def begun(out: Path) -> subprocess.Popen[str]:
    sizes = {"replicas": CONFIG.replicas, "control-replicas": CONFIG.control_replicas, "steps": CONFIG.steps}
    options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "reproduce", "toy-2d", *options, "--jobs", "2", "--quiet", "--out", out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was begun with noisescape source")  # minutes, in which somebody may edit it
@pytest.mark.parametrize(("whom", "name", "moment"), CELLS)
def test_a_signal_leaves_no_process_and_a_run_that_goes_on(
    whom: str, name: str, moment: str, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out, number = tmp_path / "run", getattr(signal, name)
    process = begun(out)
    try:
        while not list(out.glob(MOMENTS[moment])):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "popen_loky_posix" in " ".join(child.cmdline())]
        if whom == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if whom == "program" else workers[0].pid, number)
        _, errors = process.communicate(timeout=120)
        _, left = psutil.wait_procs(children, timeout=20)
        assert left == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    # it is the program that Ctrl-C ends: a worker leaves it to that, from its first task on
    finished = (whom, name, process.returncode) == ("worker", "SIGINT", 0)
    if finished:
        assert errors == ""
    elif whom == "worker":
        assert process.returncode == 1
        assert errors.startswith("error: a worker process was killed, ")
        assert errors.endswith("take fewer than 2 --jobs and continue with --resume\n")
        assert errors.count("\n") == 1
    elif name == "SIGKILL":
        assert process.returncode == -number
    else:
        assert (process.returncode, errors) == (CODES[name], GOES_ON)
    assert Run.open(out).complete == finished
    TOY_2D.run(CONFIG, out, jobs=1, resume=True, progress=False)
    for page in ("figures", "report.html"):  # of the run that came to its end
        assert (out / page).exists() == finished
    found = {name: content for name, content in contents(out).items() if not name.startswith(("figures", "report"))}
    assert found == expected
