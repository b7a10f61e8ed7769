"""The page of a law: what it says, what was found, and the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure as MplFigure

from noisescape.experiments.curves import Curves
from noisescape.report.lab.tables import law_table
from noisescape.report.page import Figure, Section
from noisescape.runs.run import Run


def law_page(run: Run, lead: str, about: str, drawn: MplFigure, caption: str) -> tuple[str, list[Section]]:
    """The parts of the report: the lead, and a section with the figure and the table.

    Args:
        run: complete.
        lead: what was found, in a sentence or two.
        about: the law, its source, and what was done.
        drawn: the figure, saved under the law's name.
        caption: its.
    """
    figure = Figure.drawn(run, run.info["experiment"], drawn, caption)
    return lead, [Section("The law, and what was found", about, [figure, law_table(run.summary())])]


def curves_of(run: Run) -> Curves:
    """What a law's run recorded, by case and metric."""
    return Curves(run.metrics().to_pylist(), int(run.info["config"]["seeds"]), by=("case", "metric"))


def means(run: Run, cases: Sequence[str], metric: str) -> tuple[list[float], list[float]]:
    """A figure's means over seeds in several cases, and their standard errors, 0 where they are not known."""
    found = [run.summary()["cases"].get(case, {}).get(metric) for case in cases]
    values = [math.nan if each is None or each["value"] is None else float(each["value"]) for each in found]
    errors = [0.0 if each is None or each["stderr"] is None else float(each["stderr"]) for each in found]
    return values, errors


def shown(run: Run, case: str, metric: str, form: str) -> str:
    """A figure of the summary, as text."""
    value = run.summary()["cases"][case][metric]["value"]
    return "–" if value is None else format(value, form)
