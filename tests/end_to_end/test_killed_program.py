"""The program killed at any moment and resumed ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from noisescape.runs.run import Run
from noisescape.runs.storage import read_bundle
from resumed_experiments import contents

KILLS = int(os.environ.get("NOISESCAPE_KILLS", "3"))


# a smaller network's worth of digits, and checkpoints more often than every ten seconds, so that kills find some;
# the processes of --jobs 2 start without the latter
PROGRAM = """
from noisescape.cli import app
from noisescape.experiments.digits import DIGITS, DigitsConfig
from noisescape.simulation.loop import simulate
simulate.__kwdefaults__["checkpoint_seconds"] = 0.02
DIGITS.presets["quick"] = DigitsConfig(
    clean=80, corrupted=16, k=5, rtol=0.3, rtol_along=0.3, sharpness_draws=5, landmarks=(0.1, 0.6)
)
app(prog_name="noisescape")
"""


COMMAND = [
    *("reproduce", "digits", "--seeds", "2", "--gd-steps", "150", "--steps", "30"),
    *("--dynamics", "gd,sgd,gld-diagonal,gld-leading,gld-hessian", "--quiet"),
]


def call(out: Path, *, jobs: int, resume: bool, seconds: float | None = None) -> bool:
    """Whether the program came to its end; it is killed after so many seconds, with all its processes."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", PROGRAM, *COMMAND, "--jobs", str(jobs), "--out", str(out)),
            *(["--resume"] if resume else []),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors
    assert output == f"report: {out / 'report.html'}\n"
    return True


def stage(out: Path) -> str:
    """How far a killed run had come; every file it left is whole."""
    for file in (*out.rglob("[!.]*.safetensors"), *out.rglob("[!.]*.json"), *out.rglob("[!.]*.parquet")):
        if file.suffix == ".safetensors":
            read_bundle(file)
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        else:
            Run(out).metrics()
    if not (out / "run.json").exists():
        return "starting"
    if (out / "report.html").exists():
        return "ending"
    if (out / "summary.json").exists():
        return "report"
    if (out / "checkpoints").exists():
        return "tables"
    names = [file.name for file in (out / "tasks").glob("[!.]*.safetensors")]
    phase = "escape" if sum(name.startswith("descent") and ".done." in name for name in names) == 2 else "descent"
    return f"{phase}, within tasks" if any(".partial." in name for name in names) else phase


RESULTS = ("metrics.parquet", "summary.json", "checkpoints")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs SIGKILL and process groups")
def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def results(out: Path) -> dict[str, bytes]:
        return {name: content for name, content in contents(out).items() if name.startswith(RESULTS)}

    took = {}
    for jobs in (1, 2):
        began = time.monotonic()
        assert call(tmp_path / f"whole-{jobs}", jobs=jobs, resume=False)
        took[jobs] = time.monotonic() - began
    expected, everything = results(tmp_path / "whole-1"), contents(tmp_path / "whole-1", without=()).keys()
    assert expected.keys() >= {"metrics.parquet", "summary.json", "checkpoints/minima.safetensors"}
    assert results(tmp_path / "whole-2") == expected
    chance = random.Random(20)
    stages: Counter[str] = Counter()
    same = runs = 0
    while stages.total() < KILLS:
        out, resume = tmp_path / f"killed-{runs}", False
        runs += 1
        while stages.total() < KILLS and (not resume or chance.random() < 0.4):
            jobs = chance.choice([1, 2])
            if call(out, jobs=jobs, resume=resume, seconds=chance.uniform(0, took[jobs])):
                break
            stages[stage(out)] += 1
            resume = True
        assert call(out, jobs=chance.choice([1, 2]), resume=True)
        found = results(out)
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        left = contents(out, without=()).keys() ^ everything
        same += not differing and not left
        if "NOISESCAPE_KILLS" in os.environ:
            with capsys.disabled():
                print(f"\n{runs} runs, {stages.total()} kills, {same} the same: {dict(stages)}", *differing, *left)
    assert same == runs
