"""Fixtures of the whole: the command line in a directory of its own, and data sets made up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli_calls import MODULE, Result
from noisescape.cli import app
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER
from noisescape.runs.run import Run
from paper_runs import HIDDEN, data_directory


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run a command in an empty directory that holds ``laboratory.py``."""
    (tmp_path / "laboratory.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    sys.modules.pop("laboratory", None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that are there already are not drawn anew."""
    monkeypatch.setattr("noisescape.report.write_report", lambda run: run.path / "report.html")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's data sets as small parts."""
    return data_directory(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def small_hidden(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one hidden layer."""
    config = replace(HIDDEN, seeds=2, epochs=3, decay_from=2)
    return ONE_HIDDEN_LAYER.run(config, tmp_path_factory.mktemp("hidden") / "run", jobs=1, progress=False)
