"""Runs made by earlier versions, as far as this repository keeps them, can still be read, judged and drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from noisescape.experiments.claims import ledger
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.report import write_report
from noisescape.runs.run import Run
from slowness import quick

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
KEPT = sorted(path.parent.name for path in RESULTS.glob("*/run.json"))


@pytest.mark.parametrize("name", KEPT)
def test_an_earlier_run_has_its_table_and_the_verdicts_it_had(name: str) -> None:
    run = Run.open(RESULTS / name)
    experiment = run.info["experiment"]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(EXPERIMENTS[experiment].summary_table(run.summary()))
    lines = capture.get().splitlines()
    assert lines[0].startswith(f"{experiment} ({run.summary()['preset']})")
    findings = json.loads((RESULTS / name / "ledger.json").read_text(encoding="utf-8"))["findings"]
    known = [(found["name"], found["case"], found["verdict"]) for found in findings]
    assert [(found.claim.name, found.result.case, found.result.verdict) for found in ledger([run])] == known


def test_the_ledger_of_all_of_them_is_the_kept_one() -> None:
    """Those with the same constants pooled."""
    findings = json.loads((RESULTS / "ledger.json").read_text(encoding="utf-8"))["findings"]
    known = [(found["name"], found["run"], found["case"], found["verdict"]) for found in findings]
    runs = [Run.open(RESULTS / name) for name in KEPT]
    assert [(f.claim.name, f.run, f.result.case, f.result.verdict) for f in ledger(runs)] == known


@pytest.mark.parametrize("name", quick(["svhn"], ["one-hidden-layer"]))
def test_an_earlier_run_without_checkpoints_is_drawn_again(name: str, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    assert "How the claims are judged" in write_report(Run.open(tmp_path / name)).read_text(encoding="utf-8")
    assert {path.stem for path in (tmp_path / name / "figures").glob("*.svg")} == {
        path.stem for path in (RESULTS / name).glob("*.png")
    }
