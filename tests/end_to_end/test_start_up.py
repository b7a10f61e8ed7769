"""What is only asked for help waits for none of the packages that do the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slowness import quick

HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "pyarrow",
    "datasets",
    "matplotlib",
    "plotly",
    "jinja2",
    "joblib",
    "rich",
}
PROGRAM = """
import json, sys
from noisescape.cli import app
try:
    app(prog_name="noisescape")
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    quick(
        [["--help"], ["--version"], ["reproduce", "digits", "--help"], ["measure", "--help"], ["watch", "--help"]],
        [
            [],
            ["reproduce", "--help"],
            *(["reproduce", name, "--help"] for name in ("toy-2d", "one-hidden-layer", "fashion-mnist", "svhn")),
            *(["reproduce", name, "--help"] for name in ("cifar10", "noise-knob", "quantities", "gd-sharpness")),
            *(["reproduce", "all", "--help"], ["reproduce", "digits", "--steps", "many"]),
            *([command, "--help"] for command in ("demo", "claims", "batch-size", "report")),
        ],
    ),
    ids=" ".join,
)
def test_nothing_that_works_is_imported(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert "noisescape" in imported
    assert imported & HEAVY == set()


def test_the_package_itself_waits_for_nothing(tmp_path: Path) -> None:
    program = "import sys, noisescape; print({name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert eval(done.stdout) & HEAVY == set()
