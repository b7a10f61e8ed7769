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
from noisescape.runs.understood import understood


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
    run.summary(), run.timing()  # unfinished or damaged, it is found out before anything is drawn
    with understood(run):
        findings, facts = ledger([run]), run.facts()
        with figure_style():
            lead, sections = experiment.report_parts(run)
        if experiment.of_paper:
            sections = [*sections, departures(experiment, run.info["config"])]
        begins, sections = story(experiment, lead, sections, findings)
    page = render(
        title=experiment.title,
        opening=begins,
        sections=[*ledger_sections(findings), *sections, *rules_section(findings)],
        facts=facts,
    )
    return run.write_report(page)
