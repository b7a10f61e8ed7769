"""Summaries of the experiments as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table


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


def digits_table(summary: Mapping[str, Any]) -> Table:
    """What each dynamics did from the minimum, mean ± standard error over seeds."""
    anisotropy = ", ".join(_number(found["anisotropy"]["value"], ".0f") for found in summary["minimum"])
    table = Table(
        title=f"digits, {summary['seeds']} seeds; Tr(HΣ)/Tr(HΣ̄) at the minima: {anisotropy}",
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


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A figure, or a dash where it was not finite (a diverged run, too few seeds)."""
    return "–" if value is None else format(value * scale, form)


TABLES: dict[str, Callable[[Mapping[str, Any]], Table]] = {"toy-2d": toy_2d_table, "digits": digits_table}
"""The table of each experiment."""


def ledger_table(findings, verbose=False):
    return ""
