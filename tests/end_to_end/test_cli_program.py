"""The command line as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import noisescape as ns

COMMAND = [sys.executable, "-c", "from noisescape.cli import app; app(prog_name='noisescape')"]


@pytest.mark.slow
def test_a_module_of_the_working_directory_is_found_by_the_program(call: object, tmp_path: Path) -> None:
    target = ["measure", "laboratory:make_risk", "--batch-size", "8", "--json"]
    done = subprocess.run([*COMMAND, *target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["dimension"] == 3
    assert done.stderr == ""


@pytest.mark.slow
def test_the_program_fails_with_one_line_and_code_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "report", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no such directory: nowhere\n"


def test_the_package_is_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "noisescape", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"noisescape {ns.__version__}\n"


@pytest.mark.slow
def test_a_bug_in_a_users_function_is_a_plain_traceback(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("def make():\n    return {}['absent']\n")
    target = ["measure", "theirs:make", "--batch-size", "8"]
    done = subprocess.run([*COMMAND, *target], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("KeyError: 'absent'\n")
    assert "During handling" not in done.stderr
    assert "direct cause" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("noisescape repr", "reproduce"), ("noisescape reproduce tw", ""), ("noisescape reproduce to", "toy-2d")],
)
def test_a_shell_completes_commands(typed: str, completed: str, tmp_path: Path) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_NOISESCAPE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        COMMAND, cwd=tmp_path, env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == completed
