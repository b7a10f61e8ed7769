"""What the figures of a measurement are called and mean, and how they are shown."""

from __future__ import annotations

import dataclasses
import io
from html import escape
from typing import Protocol

from rich.console import Console
from rich.table import Table

from noisescape.linops import Estimate

MEANING = {
    "loss": ("L", "empirical risk"),
    "gradient_norm": ("‖ḡ‖", "0 at a minimum"),
    "trace_h": ("Tr H", "total curvature"),
    "trace_sigma": ("Tr Σ", "size of the gradient noise"),
    "trace_h_sigma": ("Tr(HΣ)", "the escaping indicator"),
    "isotropic_reference": ("Tr(HΣ̄)", "the same for isotropic noise of equal trace"),
    "anisotropy": ("Tr(HΣ)/Tr(HΣ̄)", "over 1: the shape of the noise helps escaping"),
    "lower_bound": ("lower bound", "a·λ₁²D/(Tr H)², for PSD H"),
    "upper_bound": ("upper bound", "D·λ₁/Tr H, for PSD H"),
    "projection_coefficient": ("a", "noise along u₁ relative to curvature (condition 2)"),
    "decay_exponent": ("d", "λ_{k+1} = λ₁·D^{−d}; condition 1 asks for d > ½"),
    "alignment": ("cos(H, Σ)", "Tr(HΣ)/(‖H‖‖Σ‖)"),
    "noise_scale": ("B simple", "Tr C/‖ḡ‖², in samples"),
    "curvature_noise_scale": ("B noise", "Tr(HC)/ḡᵀHḡ, in samples"),
    "smallest_eigenvalue": ("λ_min(H)", "negative: H is not PSD and the bounds need not hold"),
}
"""Field of a measurement ↦ its symbol, and what it says."""


class Measured(Protocol):
    """A dataclass with estimates among its fields."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def sample_count(self) -> int:
        """N."""

    @property
    def batch_size(self) -> int:
        """B."""

    @property
    def replacement(self) -> bool:
        """The sampling law."""


def estimates_of(measured: Measured) -> dict[str, Estimate]:
    """All scalar figures by name."""
    found = {field.name: getattr(measured, field.name) for field in dataclasses.fields(measured)}  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if isinstance(value, Estimate)}


def figures_table(measured: Measured) -> Table:
    """A row for each: figure, value with standard error, 95 % interval, meaning."""
    law = "with" if measured.replacement else "without"
    counts = f"D = {measured.dimension}, N = {measured.sample_count}, B = {measured.batch_size}"
    table = Table(title=f"{counts} {law} replacement", title_justify="left")
    table.add_column("figure")
    table.add_column("value ± standard error", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("meaning", ratio=1)
    for name, found in estimates_of(measured).items():
        low, high = found.interval()
        interval = f"{low:.4g} … {high:.4g}" if found.stderr else "exact"
        symbol, meaning = MEANING[name]
        table.add_row(symbol, str(found), interval, meaning)
    return table


def as_html(table: Table) -> str:
    """The table as a notebook shows it; whatever the cells hold is text."""
    columns = [[escape(str(cell)) for cell in column.cells] for column in table.columns]
    heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in zip(*columns, strict=True))
    return (
        f"<table><caption>{escape(str(table.title))}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def as_text(table: Table) -> str:
    """The table as 110 columns of text."""
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    return text.getvalue().rstrip()
