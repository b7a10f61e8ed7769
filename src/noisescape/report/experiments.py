"""The report of one run."""

from __future__ import annotations

from pathlib import Path

from noisescape.errors import InvalidValueError
from noisescape.experiments.registry import EXPERIMENTS
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
    EXPERIMENTS[name].write_report(run)
    return run.path / "report.html"
