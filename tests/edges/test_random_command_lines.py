"""300 command lines drawn at random: each is done or refused in a line, and a refused one leaves nothing behind."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli_calls import MODULE, SMALLEST, Result
from command_lines import commands, drawn
from noise_logs import reports
from noisescape.cli import app
from noisescape.runs.local_engine import Local
from noisescape.runs.run import strict_json
from noisescape.training.branch_training import Laboratory
from slowness import quick

LINES, QUICK_LINES = 300, 50
CHECKED = """

def make_checked():
    model = torch.nn.Linear(3, 2)
    data = torch.randn(48, 3), torch.randint(0, 2, (48,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = torch.nn.functional.cross_entropy
    return {"model": model, "optimizer": optimizer, "loss": loss, "data": data, "samples": 256, "tolerance": 0.1}
"""
OUTCOMES: dict[int, str] = {}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is complete, of the smallest."""
    path = tmp_path_factory.mktemp("runs") / "complete"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("noisescape.report.write_report", lambda run: run.path / "report.html")
        done = CliRunner().invoke(app, [*SMALLEST, "--quiet", "--out", str(path)])
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def place(tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what command lines may name, where work ends as soon as it starts."""

    def started(*_: Any, **__: Any) -> None:
        raise typer.Exit

    (tmp_path / "laboratory.py").write_text(MODULE + CHECKED)
    (tmp_path / "log.jsonl").write_text("".join(strict_json(report) + "\n" for report in reports()))
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "mine.txt").write_text("mine")
    shutil.copytree(complete, tmp_path / "complete")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("NOISESCAPE_DATA", str(tmp_path / "no data"))
    monkeypatch.setattr(Local, "perform", started)
    monkeypatch.setattr(Laboratory, "train", started)
    monkeypatch.setattr("noisescape.report.write_report", lambda run: run.path / "report.html")
    monkeypatch.delitem(sys.modules, "laboratory", raising=False)
    return tmp_path


def held(place: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in place.rglob("*")
    }


@pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")  # said, and no error
@pytest.mark.parametrize("seed", quick(range(QUICK_LINES), range(LINES)))
def test_a_command_line_is_done_or_refused(seed: int, place: Path) -> None:
    line, before = drawn(seed), held(place)
    result: Result = CliRunner().invoke(app, line)
    shown = f"{line}\n{result.output}"
    debugged = "--debug" in line and result.exit_code == 1
    assert result.exit_code in (0, 1, 2), shown
    assert debugged or result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output, shown
    if result.exit_code == 1 and not debugged:
        [said] = result.stderr.strip().splitlines()
        assert said.startswith("error: "), shown
    if result.exit_code:
        assert held(place) == before, shown
    OUTCOMES[seed] = {0: "done", 1: "refused", 2: "misused"}[result.exit_code]


def test_the_draws_are_not_lopsided(capsys: pytest.CaptureFixture[str]) -> None:
    """Of those that have run; a part of them, asked for by name, is no sample."""
    if len(OUTCOMES) < LINES:
        pytest.skip(f"{len(OUTCOMES)} of {LINES} command lines ran")
    counted = Counter(OUTCOMES.values())
    with capsys.disabled():
        print(f"\n{LINES} command lines: {', '.join(f'{number} {what}' for what, number in counted.items())}")
    assert counted["done"] >= 60
    assert counted["refused"] + counted["misused"] >= 60
    assert counted["refused"] >= 60
    tried = {tuple(word for word in drawn(seed) if word != "--debug")[:1] for seed in range(LINES)}
    assert {path[:1] for path, _ in commands()} <= tried
