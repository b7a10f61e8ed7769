"""Summaries of the experiments as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from noisescape.experiments.claims import Claim, Finding


def toy_2d_table(summary: Mapping[str, Any]) -> Table:
    """Success rates and the indicator, a row for each dynamics and geometry."""
    table = Table(title=f"toy-2d ({summary['preset']})", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("geometry", "dynamics"):
        table.add_column(column, no_wrap=True)
    for column in ("success", "95 % interval", "n", "Tr(HΣ)"):
        table.add_column(column, justify="right", no_wrap=True)
    for geometry, found in {"published": summary, **summary["controls"]}.items():
        for name, rate in found["success"].items():
            table.add_row(
                geometry,
                name,
                f"{rate['rate']:.1%}",
                f"{rate['low']:.1%} – {rate['high']:.1%}",
                str(rate["n"]),
                f"{found['trace_h_sigma'][name]['value']:,.0f}",
            )
        table.add_section()
    return table


def escape_table(summary: Mapping[str, Any]) -> Table:
    """What each dynamics did from the minimum, mean ± standard error over seeds."""
    anisotropy = ", ".join(_number(found["anisotropy"]["value"], ".0f") for found in summary["minimum"])
    table = Table(
        title=f"{summary['experiment']} ({summary['preset']}), {summary['seeds']} seeds; "
        f"Tr(HΣ)/Tr(HΣ̄) at the minima: {anisotropy}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("dynamics", no_wrap=True)
    for column in ("loss", "test acc.", "E[ΔL]·10³", "change", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in summary["final"].items():
        change = summary["sharpness_change"][name]
        table.add_row(
            name,
            _number(found["loss"]["value"], ".3f"),
            _number(found["test_accuracy"]["value"], ".1%"),
            _number(found["sharpness/signed"]["value"], ".1f", 1e3),
            _number(change["value"], "+.1f", 1e3),
            f"{_number(change['low'], '+.1f', 1e3)} … {_number(change['high'], '+.1f', 1e3)}",
        )
    return table


def one_hidden_layer_table(summary: Mapping[str, Any]) -> Table:
    """Tr(HΣ) over its isotropic reference, a row for each optimiser and width."""
    table = Table(
        title=f"one-hidden-layer ({summary['preset']}), {summary['seeds']} seeds: Tr(HΣ)/Tr(HΣ̄) along training",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("optimiser, width", no_wrap=True)
    for column in ("geometric mean", "95 % interval", "least", "greatest"):
        table.add_column(column, justify="right", no_wrap=True)
    for case, found in summary["anisotropy"].items():
        logs = found["log_anisotropy"]
        low, high = (_number(None if logs[end] is None else math.exp(logs[end]), ".1f") for end in ("low", "high"))
        table.add_row(
            case.replace("/", ", "),
            _number(None if logs["value"] is None else math.exp(logs["value"]), ".1f"),
            f"{low} … {high}",
            _number(found["least"], ".1f"),
            _number(found["greatest"], ".1f"),
        )
    return table


def training_table(summary: Mapping[str, Any]) -> Table:
    """Where each dynamics ended, mean ± standard error over seeds."""
    table = Table(
        title=f"{summary['experiment']} ({summary['preset']}), {summary['seeds']} seeds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("dynamics", no_wrap=True)
    for column in ("loss", "train acc.", "test acc.", "± s.e.", "E[ΔL]", "± s.e."):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in summary["final"].items():
        accuracy, sharpness = found["test_accuracy"], found["sharpness/signed"]
        table.add_row(
            name,
            _number(found["loss"]["value"], ".3f"),
            _number(found["train_accuracy"]["value"], ".1%"),
            _number(accuracy["value"], ".1%"),
            _number(accuracy["stderr"], ".1%"),
            _number(sharpness["value"], ".2e"),
            _number(sharpness["stderr"], ".1e"),
        )
    return table


STYLES = {"supported": "green", "contradicted": "red", "undecided": "yellow"}
"""The colour of a verdict in the terminal."""


def ledger_text(findings: Sequence[Finding], *, verbose: bool = False) -> Text:
    """The ledger: each claim, then a line a finding; ``verbose`` adds statistic and rule."""
    several = len({finding.source for finding in findings}) > 1
    labels = [
        " ".join(filter(None, (finding.source if several else "", finding.result.case))) for finding in findings
    ]
    width = min(40, max(map(len, labels), default=0))
    text = Text()
    shown: Claim | None = None
    for finding, label in zip(findings, labels, strict=True):
        claim, result = finding.claim, finding.result
        if claim is not shown:
            text.append(f"\n{'Control: ' if claim.control else ''}{claim.statement}\n", style="bold")
            if verbose:
                text.append(f"  {claim.statistic}\n  {claim.rule}\n", style="dim")
            shown = claim
        text.append(f"  {result.verdict:<13}", style=STYLES[result.verdict])
        text.append(f"{label:<{width}} {finding.effect_text}, n = {result.n}\n")
        if result.note:
            text.append(f"{'':15}{result.note}\n", style="dim")
    return text


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A figure, or a dash where it was not finite (a diverged run, too few seeds)."""
    return "–" if value is None else format(value * scale, form)
