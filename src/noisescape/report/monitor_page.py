"""The page of a training's log: what it says, the curves, and a dial for the batch size."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

from noisescape import __version__
from noisescape.errors import InvalidValueError
from noisescape.printable import shortened
from noisescape.report.batch_dial import batch_dial
from noisescape.report.monitor_answers import answers
from noisescape.report.monitor_curves import curves
from noisescape.report.monitor_figures import KINDS, all_series, group_kinds, short
from noisescape.report.page import Answers, Section, Table, render
from noisescape.runs.storage import write_text
from noisescape.training.log import NoiseLog

NAME = "noise-report.html"


def write_noise_report(log: NoiseLog, out: Path | None = None) -> Path:
    """Write the page of a log, ``noise-report.html`` beside it unless ``out`` says where; returns its path."""
    path = out if out is not None else (log.path if log.path.is_dir() else log.path.parent) / NAME
    write_text(path, noise_page(log))
    return path


def noise_page(log: NoiseLog) -> str:
    """The page itself."""
    found = answers(log)
    sections = []
    if found:
        caption = "As of the last report of each figure. A verdict's colour says nothing that its words do not."
        sections.append(Section("What the gradient noise says", "", [Answers(found, caption)]))
    sections.append(_batch_sizes(log))
    sections.append(Section("Over the steps", "", curves(log), side_by_side=True))
    sections.append(Section("The latest figures", "", [latest_table(log)]))
    return render(
        title=f"Gradient noise in {shortened(log.path.name or log.path)}",
        opening=_lead(log),
        sections=sections,
        facts={
            "log": shortened(log.path, 400),
            "reports": f"{len(log.steps)}, at steps {log.steps[0]} to {log.steps[-1]}",
            "last written": _when(log.written),
            "made by": f"noisescape {__version__}",
        },
    )


def latest_table(log: NoiseLog) -> Table:
    """The last value of every figure, with its interval."""
    groups = {kind.name: f"noise scale of group {kind.label}" for kind in group_kinds(log)}
    metric = {"preconditioned/scale": "noise scale in Adam's metric"}
    named = {**metric, **groups, "probe/preconditioned_top_eigenvalue": "λ₁ / edge in Adam's metric"}
    rows = [
        [
            named.get(found.kind.name, found.kind.label) + (f", {found.kind.unit}" if found.kind.unit else ""),
            found.latest,
            found.interval or "–",
            str(found.steps[-1]),
        ]
        for found in all_series(log, [*KINDS, *group_kinds(log)])
    ]
    columns = ["figure", "latest", "95 % interval", "at step"]
    return Table(
        columns, rows, "Gradient noise: Tr C and the noise scales are those of one sample, not divided by B."
    )


def _batch_sizes(log: NoiseLog) -> Section:
    title = "What another batch size would do"
    try:
        return Section(title, "", [batch_dial(log)])
    except InvalidValueError as error:
        return Section(title, f"This log cannot say: {error}.")


def _lead(log: NoiseLog) -> str:
    size = log.last("noise/batch_size")
    batch = "" if math.isnan(size) else f" at {short(size)} samples a step"
    reports = "One report" if len(log.steps) == 1 else f"{len(log.steps)} reports"
    return f"{reports} of a training{batch}, up to step {log.steps[-1]}."


def _when(written: float) -> str:
    if math.isnan(written):
        return "unknown"
    return datetime.datetime.fromtimestamp(written, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
