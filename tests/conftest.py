"""Fixtures shared by the tests; the builders are in ``cases.py``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from browser import open_browser
from cases import CASES, Case, bowl_risk, normal
from cli_calls import MODULE, Result
from noisescape.cli import app
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER
from noisescape.linops.probing import Exact
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.storage import write_bundle
from paper_runs import HIDDEN, data_directory
from quick_cases import slow_ones, unknown_keys

collect_ignore_glob = ["*conftest.py"]  # they hold no doctests, and files of one name would clash


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests that take long, some cases are slow; where single tests are asked for, all of them are meant."""
    if any("::" in argument for argument in config.args):
        return
    if missing := unknown_keys(items):
        raise pytest.UsageError(f"no such tests, but listed in tests/quick_cases.py: {', '.join(missing)}")
    for item in slow_ones(items):
        item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as started:
        yield started


@pytest.fixture
def mlp() -> Case:
    """A tiny classifier, N = 11, D = 31."""
    return CASES["mlp cross-entropy"]


@pytest.fixture
def conv() -> Case:
    """A tiny conv net, N = 9, D = 47."""
    return CASES["conv"]


@pytest.fixture(params=["of all samples", "of a sample"])
def bowl_risks(request: pytest.FixtureRequest) -> EmpiricalRisk:
    """The same closed form, given by the vector of losses and by the loss of one sample."""
    return bowl_risk(request.param)


@pytest.fixture
def by_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes whatever the exact value costs, so that what holds of them is seen on small matrices too."""
    monkeypatch.setattr(Exact, "is_cheaper", lambda self, planned, left: False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a bundle may be written."""
    return tmp_path / "descent-0.partial.safetensors"


@pytest.fixture
def written(path: Path) -> bytes:
    """A bundle there, and its bytes."""
    write_bundle(path, {"theta": normal(5, seed=3), "n": torch.arange(3)}, {"step": 7, "rows": [math.nan]})
    return path.read_bytes()


@pytest.fixture
def chunk_limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set how many bytes a processor's cache holds, and what share of it the parameters may take."""

    def limit(*, working_set: int | None = None, parameter_share: float | None = None) -> None:
        if working_set is not None:
            monkeypatch.setattr("noisescape.risk.chunking.CACHED_BYTES", working_set)
        if parameter_share is not None:
            monkeypatch.setattr("noisescape.risk.chunking.PARAMETER_SHARE", parameter_share)

    return limit


@pytest.fixture
def narrow_products(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many bytes a product of factored gradients may take at once."""
    return lambda size: monkeypatch.setattr("noisescape.risk.factored_gradients.TEMPORARY", size)


@pytest.fixture
def column_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many bytes the columns of an estimate may take at once."""
    return lambda size: monkeypatch.setattr("noisescape.linops.operator.COLUMN_BYTES", size)


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
