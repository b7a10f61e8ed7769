"""Estimates: a value with its standard error, interval and cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from noisescape.scalars import check_level


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar.

    Attributes:
        value: the point estimate.
        stderr: its standard error; 0 where the value is exact up to rounding.
        cost: operator products (columns) spent.
        dof: degrees of freedom behind ``stderr``; the interval is Student's with these.

    >>> half = Estimate(0.5, 0.1, cost=20, dof=19)
    >>> tuple(round(x, 3) for x in half.interval())
    (0.291, 0.709)
    >>> print(half)
    0.5 ± 0.1
    """

    value: float
    stderr: float
    cost: int = 0
    dof: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided Student interval at ``level``."""
        half = _quantile(level, self.dof) * self.stderr if self.stderr else 0.0
        return self.value - half, self.value + half

    @property
    def relative_stderr(self) -> float:
        """stderr / |value|."""
        if self.stderr == 0:
            return 0.0
        return self.stderr / abs(self.value) if self.value else math.inf

    def scaled(self, factor: float) -> Estimate:
        """The estimate of factor × the quantity."""
        return Estimate(self.value * factor, self.stderr * abs(factor), self.cost, self.dof)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers for a summary: value, stderr and the ends of the 95 % interval."""
        low, high = self.interval()
        return {"value": self.value, "stderr": self.stderr, "low": low, "high": high}

    def __str__(self) -> str:
        if self.stderr == 0:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ± {self.stderr:.2g}"


@dataclass(frozen=True)
class VectorEstimate:
    """A vector with an error bar for each entry; fields as in :class:`Estimate`, values (D,)."""

    value: Tensor
    stderr: Tensor
    cost: int = 0
    dof: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Entry-wise two-sided Student intervals at ``level`` (not simultaneous)."""
        half = _quantile(level, self.dof) * self.stderr
        return self.value - half, self.value + half

    @property
    def relative_stderr(self) -> float:
        """‖stderr‖₂ / ‖value‖₂."""
        scale = float(torch.linalg.vector_norm(self.value))
        error = float(torch.linalg.vector_norm(self.stderr))
        return error / scale if scale else (0.0 if error == 0 else math.inf)


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Quotient of two independent estimates, its standard error by the delta method.

    For an exact denominator this is plain scaling. Both relative errors are assumed small.
    """
    if denominator.value == 0:
        return Estimate(math.nan, math.nan, numerator.cost + denominator.cost)
    value = numerator.value / denominator.value
    variance = (numerator.stderr / denominator.value) ** 2 + (value * denominator.stderr / denominator.value) ** 2
    cost = numerator.cost + denominator.cost
    return Estimate(value, math.sqrt(variance), cost, min(numerator.dof, denominator.dof))


def square_root(squared: Estimate) -> Estimate:
    """√x of an estimate of x ≥ 0, its standard error by the delta method; NaN below 0.

    >>> print(square_root(Estimate(4.0, 0.4)))
    2 ± 0.1
    """
    root = math.sqrt(squared.value) if squared.value >= 0 else math.nan
    return Estimate(root, squared.stderr / (2 * root) if root else 0.0, squared.cost, squared.dof)


def _quantile(level: float, dof: float) -> float:
    check_level("an interval's level", level)
    tail = 0.5 + level / 2
    return float(ndtri(tail) if math.isinf(dof) else stdtrit(dof, tail))
