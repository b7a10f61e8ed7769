"""A law's findings as a table: a row for each case, a column for each figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noisescape.report.page import Table
from noisescape.report.tables import estimate


@dataclass(frozen=True)
class Column:
    """A figure as it is shown.

    Attributes:
        metric: its name in the run's table.
        label: of the column.
        form: of the number.
        scale: by which it is multiplied.
        wide: whether a terminal of 80 columns does without.
    """

    metric: str
    label: str
    form: str = ".3g"
    scale: float = 1.0
    wide: bool = False


COLUMNS: dict[str, tuple[Column, ...]] = {
    "stability": (
        Column("threshold", "η*", ".4f"),
        Column("descent", "2/λ₁", ".4f", wide=True),
        Column("growth", "E‖δ‖² a step", ".3f", wide=True),
        Column("left/sgd", "SGD left, %", ".0f", 100),
        Column("left/additive", "fixed noise left, %", ".0f", 100),
    ),
    "budget": (
        Column("settled", "batch sharpness / level", ".2f"),
        Column("largest", "λ₁ / level", ".2f"),
        Column("loss", "loss", ".1e", wide=True),
    ),
    "exits": (
        Column("difference", "log-likelihood, exp − power", "+.1f"),
        Column("exponential_misfit", "misfit, exp", ".1f"),
        Column("power_misfit", "misfit, power", ".1f"),
        Column("exponential_slope", "slope, exp", ".2f", wide=True),
        Column("power_slope", "slope, power", ".2f", wide=True),
    ),
    "svag": (
        Column("gap", "change beyond largest ℓ's", "+.3f"),
        Column("end", "loss at the end", ".3f"),
        Column("threshold", "η*", ".4f", wide=True),
    ),
    "noise-law": (
        Column("index_over_iterations", "α, iterations", ".3f"),
        Column("index_over_iterations/null", "Gaussian", ".3f"),
        Column("kurtosis_over_iterations", "kurtosis", ".2f", wide=True),
        Column("index_over_coordinates", "α, coordinates", ".3f"),
        Column("index_over_coordinates/null", "Gaussian", ".3f"),
        Column("variance_share", "variance share", ".3f", wide=True),
        Column("predicted_share", "predicted", ".3f", wide=True),
        Column("log_excess", "log10 excess", ".2f", wide=True),
    ),
    "alignment": (
        Column("exponent", "γ", ".2f"),
        Column("null_high", "at random, at most", ".2f"),
        Column("correlation", "correlation", ".2f", wide=True),
        Column("mu", "μ", ".3g"),
    ),
    "implicit-bias": (Column("error", "relative error", ".3g"), Column("loss", "loss", ".1e")),
    "llc": (
        Column("estimate", "λ̂", ".3g"),
        Column("expected", "expected", ".3g"),
        Column("quadratic", "of a quadratic", ".3g"),
        Column("r_hat", "R̂", ".3f"),
        Column("effective", "effective draws", ".0f"),
        Column("loss", "loss", ".3g", wide=True),
    ),
}
"""By law, in the order shown."""
CAPTION = "Mean ± standard error over seeds."


def law_table(summary: Mapping[str, Any]) -> Table:
    """Every case that has one of the law's figures."""
    columns = COLUMNS[summary["experiment"]]
    rows = []
    for case, found in summary["cases"].items():
        if not any(column.metric in found for column in columns):
            continue
        cells = [
            estimate(found[column.metric], column.form, column.scale, missing="–") if column.metric in found else ""
            for column in columns
        ]
        rows.append([case, *cells])
    wide = [column.label for column in columns if column.wide]
    return Table(["case", *(column.label for column in columns)], rows, CAPTION, wide=wide)
