"""Summaries of the experiments as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table


def toy_2d_table(summary: Mapping[str, Any]) -> Table:
    """Success rates and the indicator, a row for each dynamics and geometry."""
    table = Table(title=f"toy-2d ({summary['preset']})", title_justify="left")
    for column, justify in (
        ("geometry", "left"),
        ("dynamics", "left"),
        ("success", "right"),
        ("95 % interval", "right"),
        ("replicas", "right"),
        ("Tr(HΣ) at the start", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
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
    anisotropy = ", ".join(f"{found['anisotropy']['value']:.0f}" for found in summary["minimum"])
    table = Table(
        title=f"digits, {summary['seeds']} seeds; Tr(HΣ)/Tr(HΣ̄) at the minima: {anisotropy}", title_justify="left"
    )
    table.add_column("dynamics")
    for column in ("training loss", "test accuracy", "E[ΔL] × 10³", "change × 10³", "95 % interval"):
        table.add_column(column, justify="right")
    for name, found in summary["final"].items():
        change = summary["sharpness_change"][name]
        table.add_row(
            name,
            _pm(found["loss"], 3),
            _pm(found["test_accuracy"], 3),
            _pm(found["sharpness/signed"], 1, 1e3),
            _pm(change, 1, 1e3),
            "–" if change["low"] is None else f"{change['low'] * 1e3:+.1f} … {change['high'] * 1e3:+.1f}",
        )
    return table


TABLES: dict[str, Callable[[Mapping[str, Any]], Table]] = {"toy-2d": toy_2d_table, "digits": digits_table}
"""The table of each experiment."""


def _pm(found: Mapping[str, Any], digits: int, scale: float = 1.0) -> str:
    if found["value"] is None:
        return "diverged"
    spread = "" if found["stderr"] is None else f" ± {found['stderr'] * scale:.{digits}f}"
    return f"{found['value'] * scale:.{digits}f}{spread}"
