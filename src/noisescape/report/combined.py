"""One page for several runs: the ledger first, then each experiment's figures and a link to its own report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from noisescape.experiments.claims import ledger
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.report.ledger import claimants, ledger_sections, rules_section, tally
from noisescape.report.page import Figure, Section, Table, render
from noisescape.runs.run import Run
from noisescape.runs.storage import write_text


def write_combined_report(root: Path, runs: Sequence[Run], title: str) -> Path:
    """Write ``report.html`` into ``root`` for complete runs whose own reports are drawn; returns its path."""
    findings = ledger(runs)
    claims = [finding for finding in findings if not finding.claim.control]
    counted = tally(claims, claimants(claims))
    page = render(
        title=title,
        opening=f"{counted} Each verdict stands with its effect, interval and number of seeds.",
        sections=[
            *ledger_sections(findings),
            *(_section(root, run) for run in runs),
            Section("What it took", "", [_times(runs)]),
            *rules_section(findings),
        ],
        facts={f"{run.info['experiment']}: {name}": fact for run in runs for name, fact in run.facts().items()},
    )
    path = root / "report.html"
    write_text(path, page)
    return path


def _section(root: Path, run: Run) -> Section:
    experiment = run.info["experiment"]
    report = os.path.relpath(run.path / "report.html", root)
    pictures = [
        Figure(run.path / "figures" / f"{name}.svg", caption)
        for name, caption in EXPERIMENTS[experiment].figures
        if (run.path / "figures" / f"{name}.svg").is_file()
    ]
    preset = run.summary().get("preset", "")
    return Section(experiment, f"Preset {preset}. All figures and tables are in {report}.", pictures)


def _times(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        timing = run.timing()
        minutes = "–" if not timing else f"{timing['seconds'] / 60:.1f}"
        work = "–" if not timing else f"{timing['task_seconds'] / 60:.1f}"
        rows.append([run.info["experiment"], str(run.summary().get("preset", "")), minutes, work])
    columns = ["experiment", "preset", "minutes", "minutes of work, all processes"]
    return Table(columns, rows, "The last session of a run that was resumed counts only what it did itself.")
