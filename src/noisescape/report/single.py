"""The page of one run."""

from __future__ import annotations

from pathlib import Path

from noisescape.errors import InvalidValueError
from noisescape.experiments.claims import ledger
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.report.departures import departures
from noisescape.report.ledger import ledger_sections, rules_section
from noisescape.report.page import render
from noisescape.report.story import story
from noisescape.report.style import figure_style
from noisescape.runs.run import Run


def write_report(run: Run) -> Path:
    """Draw a complete run's figures anew and write its ``report.html``; returns its path.

    Raises:
        FileNotFoundError: the run did not finish.
        ValueError: no report is known for its experiment.
    """
    name = run.info["experiment"]
    if name not in EXPERIMENTS:
        raise InvalidValueError(f"no report for experiment '{name}'; known: {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    with figure_style():
        lead, sections = experiment.report_parts(run)
    if experiment.of_paper:
        sections = [*sections, departures(experiment, run.info["config"])]
    findings = ledger([run])
    begins, sections = story(experiment, lead, sections, findings)
    page = render(
        title=experiment.title,
        opening=begins,
        sections=[*ledger_sections(findings), *sections, *rules_section(findings)],
        facts=run.facts(),
    )
    return run.write_report(page)
