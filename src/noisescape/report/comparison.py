"""Cells and tables that the reports on compared dynamics share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noisescape.report.page import Table
from noisescape.report.style import LABELS


def mean_cell(found: Mapping[str, Any], form: str, scale: float = 1.0) -> str:
    """A mean over seeds ± its standard error."""
    if found["value"] is None:
        return "diverged"
    spread = "?" if found["stderr"] is None else format(found["stderr"] * scale, form)
    return f"{found['value'] * scale:{form}} ± {spread}"


def trace_table(summary: Mapping[str, Any], form: str) -> Table:
    """The trace that each noise had beside the one it should have had."""
    rows = []
    for name, injected in summary["injected_trace"].items():
        target = summary["target_trace"][name]
        if injected["value"] and target["value"]:
            ratio = f"{injected['value'] / target['value']:.2f}"
            rows.append([LABELS[name], mean_cell(injected, form), mean_cell(target, form), ratio])
    return Table(
        ["noise", "injected ‖ε‖²", "target", "ratio"],
        rows,
        "What was injected, measured, beside its target: the trace of minibatch noise at the same parameters, for "
        "constant noise that at the start. Means along the trajectories ± standard error over seeds.",
    )
