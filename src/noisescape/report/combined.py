"""One page for several runs: the ledger first, then each experiment's figures and a link to its own report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from noisescape.experiments.claims import ledger
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.report.ledger import ledger_sections, rules_section
from noisescape.report.page import Figure, Section, Story, Table, render
from noisescape.report.story import judged_answer, verdicts_counted
from noisescape.runs.run import Run
from noisescape.runs.storage import write_text

QUESTION = "Which of the paper's claims hold in these runs?"


def write_combined_report(root: Path, runs: Sequence[Run], title: str) -> Path:
    """Write ``report.html`` into ``root`` for complete runs whose own reports are drawn; returns its path."""
    findings = ledger(runs)
    pictures = {run.path: _pictures(run) for run in runs}
    shown = next((each[0] for each in pictures.values() if each), None)
    page = render(
        title=title,
        opening=Story(judged_answer(QUESTION, _by_run(runs), findings), "", shown),
        sections=[
            *ledger_sections(findings),
            *(_section(root, run, [each for each in pictures[run.path] if each is not shown]) for run in runs),
            Section("What it took", "", [_times(runs)]),
            *rules_section(findings),
        ],
        facts={f"{run.info['experiment']}: {name}": fact for run in runs for name, fact in run.facts().items()},
    )
    path = root / "report.html"
    write_text(path, page)
    return path


def _by_run(runs: Sequence[Run]) -> str:
    """What each run says of them."""
    parts = []
    for run in runs:
        claims = [finding for finding in ledger([run]) if not finding.claim.control]
        parts.append(f"{run.info['experiment']}: {verdicts_counted(claims) or 'none judged'}")
    return f"{'; '.join(parts)}."


def _pictures(run: Run) -> list[Figure]:
    return [
        Figure(run.path / "figures" / f"{name}.svg", caption)
        for name, caption in EXPERIMENTS[run.info["experiment"]].figures
        if (run.path / "figures" / f"{name}.svg").is_file()
    ]


def _section(root: Path, run: Run, pictures: Sequence[Figure]) -> Section:
    report = os.path.relpath(run.path / "report.html", root)
    preset = run.summary().get("preset", "")
    return Section(run.info["experiment"], f"Preset {preset}. All figures and tables are in {report}.", pictures)


def _times(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        timing = run.timing()
        minutes = "–" if not timing else f"{timing['seconds'] / 60:.1f}"
        work = "–" if not timing else f"{timing['task_seconds'] / 60:.1f}"
        rows.append([run.info["experiment"], str(run.summary().get("preset", "")), minutes, work])
    columns = ["experiment", "preset", "minutes", "minutes of work, all processes"]
    return Table(columns, rows, "The last session of a run that was resumed counts only what it did itself.")
