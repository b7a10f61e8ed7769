"""What is built for others: whole, described well, and at work where nothing else of the repository is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "noisescape"
WORK = """
import torch, noisescape as ns
from noisescape.report import Section, Table, render
assert "{target}" in ns.__file__, ns.__file__
risk = ns.EmpiricalRisk(
    torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (torch.randn(20, 3), torch.arange(20) % 2)
)
print(ns.measure(risk, risk.parameters(), batch_size=4, progress=False))
assert "<table" in render("t", "l", [Section("s", "", [Table(["a"], [["1"]], "c")])], {{}})
from noisescape.report.page import _plotlyjs
assert len(_plotlyjs()) > 1e6
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made from it."""
    where = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(where), str(ROOT)],
        cwd=where,
        check=True,
        capture_output=True,
    )
    return where


def test_the_wheel_holds_every_file_of_the_source(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    source = {
        str(path.relative_to(SOURCE.parent))
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert source <= held, sorted(source - held)
    outside = {name for name in held if not name.startswith(("noisescape/", "noisescape-"))}
    assert outside == set(), "tests and benchmarks stay at home"


def test_the_sdist_has_what_it_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "src/noisescape/__init__.py"} <= names


def test_the_description_can_be_shown(built: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_what_is_installed_from_the_wheel_works(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(target), str(wheel)], check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(target)
    where = tmp_path / "elsewhere"
    where.mkdir()

    def run(*arguments: str) -> str:
        found = subprocess.run(
            [sys.executable, *arguments],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    assert "Tr(HΣ)" in run("-c", WORK.format(target=target))
    assert run("-m", "noisescape", "--version").startswith("noisescape ")
    assert "--preset" in run("-m", "noisescape", "reproduce", "toy-2d", "--help")
