"""The command line as a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from noisescape.cli import app; app(prog_name='noisescape')"]


def test_a_module_of_the_working_directory_is_found_by_the_program(call: object, tmp_path: Path) -> None:
    target = ["measure", "laboratory:make_risk", "--batch-size", "8", "--json"]
    done = subprocess.run([*COMMAND, *target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["dimension"] == 3
    assert done.stderr == ""


def test_the_program_fails_with_one_line_and_code_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "report", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no such directory: nowhere\n"
