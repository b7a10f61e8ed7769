"""The figures of a training's log: what each is called, and its latest value with its interval."""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from noisescape.printable import shortened
from noisescape.training.log import NoiseLog

NORMAL = 1.959963984540054
"""Standard errors on either side of a 95 % interval."""
THREE_DIGITS = decimal.Context(prec=3, rounding=decimal.ROUND_HALF_UP)


@dataclass(frozen=True)
class Kind:
    """A figure that a monitor may report.

    Attributes:
        name: after ``noise/``.
        label: what it is called.
        unit: of its values; empty where they have none that is worth a word.
        interval: whether its ends are reported, follow from a standard error, or are not known.
        over: another figure that it is divided by.
    """

    name: str
    label: str
    unit: str = ""
    interval: Literal["ends", "standard error", "none"] = "none"
    over: str = ""


NOISE_SCALE = Kind("scale", "noise scale", "samples", "ends")
ADAM_SCALE = Kind("preconditioned/scale", "in Adam's metric", "samples", "ends")
TRACE = Kind("trace_covariance", "Tr C, one sample", interval="standard error")
SQUARED_NORM = Kind("squared_gradient_norm", "‖ḡ‖²", interval="standard error")
EDGE = Kind("probe/top_eigenvalue_over_edge", "λ₁ / edge")
ADAM_EDGE = Kind("probe/preconditioned_top_eigenvalue", "in Adam's metric", over="probe/preconditioned_edge")
SHARPNESS = Kind("probe/batch_sharpness", "batch sharpness", interval="standard error")
INDICATOR = Kind("probe/hessian_noise_trace", "Tr(HΣ), batch B", interval="standard error")
KINDS = (
    NOISE_SCALE,
    ADAM_SCALE,
    TRACE,
    SQUARED_NORM,
    EDGE,
    ADAM_EDGE,
    SHARPNESS,
    INDICATOR,
    Kind("lr", "learning rate"),
    Kind("overhead", "share spent probing"),
)
"""In the order in which they are shown."""


@dataclass(frozen=True)
class Series:
    """A figure over the steps at which it was reported.

    Attributes:
        kind: which.
        steps: (n,) optimiser steps.
        values: (n,), nan where only the interval was known.
        low, high: (n,) ends of the 95 % intervals, nan where not known; ``high`` may be infinite.
    """

    kind: Kind
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def latest(self) -> str:
        """The last value as text."""
        return short(float(self.values[-1]), missing="undetermined")

    @property
    def interval(self) -> str:
        """The last interval as text, empty where there is none."""
        low, high = float(self.low[-1]), float(self.high[-1])
        return "" if math.isnan(low) else f"{short(low)} to {short(high)}"


def series(log: NoiseLog, kind: Kind) -> Series | None:
    """A figure of a log, None where it was never reported."""
    absent = np.full(len(log.steps), math.nan)

    def column(name: str) -> np.ndarray:
        return log.columns.get(f"noise/{name}", absent)

    values, low, high = column(kind.name), absent, absent
    if kind.over:
        values = values / column(kind.over)
    if kind.interval == "ends":
        low, high = column(f"{kind.name}_low"), column(f"{kind.name}_high")
    elif kind.interval == "standard error":
        spread = NORMAL * column(f"{kind.name}_stderr")
        spread = np.where(np.isfinite(spread), spread, math.nan)  # infinite after a single step: nothing is known
        low, high = values - spread, values + spread
    there = ~(np.isnan(values) & np.isnan(low))
    if not there.any():
        return None
    return Series(kind, log.steps[there], values[there], low[there], high[there])


def group_kinds(log: NoiseLog) -> list[Kind]:
    """The noise scale of each parameter group."""
    return [Kind(f"group/{name}/scale", shortened(name), "samples", "ends") for name in log.groups]


def all_series(log: NoiseLog, kinds: Sequence[Kind] = KINDS) -> list[Series]:
    """Those of the figures that the log has."""
    return [found for kind in kinds if (found := series(log, kind)) is not None]


def short(value: float, *, missing: str = "–") -> str:
    """A number in three digits, as the page's script writes it too.

    >>> [short(value) for value in (1234.5, -0.25, 0.1236, 2e-5, 1.125, float("inf"), float("nan"))]
    ['1230', '−0.25', '0.124', '2e−5', '1.13', '∞', '–']
    """
    if math.isnan(value):
        return missing
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = THREE_DIGITS.create_decimal_from_float(value)
    if rounded == 0 or 1e-4 <= abs(rounded) < 1e7:
        text = f"{rounded:f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, _, exponent = f"{rounded:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "−")
