"""Which report belongs to which experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from noisescape.errors import InvalidValueError
from noisescape.report.escape import write_escape_report
from noisescape.report.one_hidden_layer import write_one_hidden_layer_report
from noisescape.report.toy_2d import write_toy_report
from noisescape.report.training import write_training_report
from noisescape.runs.run import Run

_REPORTS: dict[str, Callable[[Run], None]] = {
    "toy-2d": write_toy_report,
    "one-hidden-layer": write_one_hidden_layer_report,
    "fashion-mnist": write_escape_report,
    "svhn": write_training_report,
    "cifar10": write_training_report,
    "digits": write_escape_report,
}


def write_report(run: Run) -> Path:
    """Draw a complete run's figures anew and write its ``report.html``; returns its path.

    Raises:
        FileNotFoundError: the run did not finish.
        ValueError: no report is known for its experiment.
    """
    experiment = run.info["experiment"]
    if experiment not in _REPORTS:
        raise InvalidValueError(f"no report for experiment '{experiment}'; known: {', '.join(_REPORTS)}")
    _REPORTS[experiment](run)
    return run.path / "report.html"
