"""Estimates: a value with its standard error, interval and cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from noisescape.scalars import check_level

LEVEL = 0.95
"""Of the interval that an estimate is shown with."""


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

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
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

    def interval(self, level: float = LEVEL) -> tuple[Tensor, Tensor]:
        """Entry-wise two-sided Student intervals at ``level`` (not simultaneous)."""
        half = _quantile(level, self.dof) * self.stderr
        return self.value - half, self.value + half

    @property
    def relative_stderr(self) -> float:
        """‖stderr‖₂ / ‖value‖₂."""
        scale = float(torch.linalg.vector_norm(self.value))
        error = float(torch.linalg.vector_norm(self.stderr))
        return error / scale if scale else (0.0 if error == 0 else math.inf)


def mean_of_draws(draws: Tensor, cost: int = 0) -> Estimate:
    """The mean of n ≥ 2 iid draws, (n,), with an interval that allows for their skewness.

    Few draws of a skewed law seldom show its tail: G, their skewness, is too small. For a gamma law, which sums of
    squares are near, (1 + 6.51/n + 20.2/n²)G + (1.48/n + 6.77/n²)G³ is nearly unbiased. For squares of normal
    numbers n = 8, 16 or 30 then cover 95 %, where n − 1 degrees of freedom cover 85, 89 and 91 %.

    Source: Bobée & Robitaille, Water Resources Research 11 (1975).

    >>> even, skewed = torch.arange(30.0), torch.arange(30.0) ** 4
    >>> [round(mean_of_draws(each).dof, 1) for each in (even, skewed)]
    [29.0, 7.4]
    """
    values = draws.double()
    n, found = len(values), skewness(values)
    likely = (1 + 6.51 / n + 20.2 / n**2) * found + (1.48 / n + 6.77 / n**2) * found**3
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(n), cost, degrees_of_freedom(n, likely))


def degrees_of_freedom(count: int, gamma: float) -> float:
    """Degrees of freedom of the spread of n iid draws: n − 1 for normal ones, fewer for skewed ones.

    The variance s² of n draws has the relative variance κ/n + 2/(n − 1), whence 2/(κ/n + 2/(n − 1)) by matching
    that of a χ². The excess κ is taken as 3γ²/2, its value for a gamma law: few draws estimate the skewness γ
    better than κ.

    Source: Satterthwaite (1946); for the variance of s², Cramér (1946), §27.4.
    """
    return 2 / (1.5 * gamma**2 / count + 2 / (count - 1))


def skewness(draws: Tensor) -> float:
    """G of a sample, (n,); vectors, and three or fewer draws, are taken for symmetric."""
    deviations = (draws - draws.mean(0)).double()
    spread = float(deviations.square().mean()) if draws.ndim == 1 else 0.0
    if len(draws) <= 3 or not 0 < spread < math.inf:
        return 0.0
    n = len(draws)
    return float(deviations.pow(3).mean()) / spread**1.5 * math.sqrt(n * (n - 1)) / (n - 2)


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Quotient of two independent estimates; its 95 % interval holds Fieller's.

    With r the quotient n/d, q Student's quantile and g = (q·σ_d/d)², there with d's own q, Fieller's interval is

        (r ± (q/|d|)·√(σ_n²(1 − g) + r²σ_d²)) / (1 − g),

    not symmetric about r: the standard error is such that the interval about r reaches its farther end. Where
    the denominator is well known that is the delta method's; where it cannot be told from 0, g ≥ 1, the quotient
    may be anything and the error is infinite. For an exact denominator it is plain scaling.

    Source: Fieller (1954).

    >>> print(ratio(Estimate(6.0, 0.1), Estimate(2.0, 0.01)), ratio(Estimate(6.0, 0.1), Estimate(2.0, 1.5)))
    3 ± 0.052 3 ± inf
    """
    cost, dof = numerator.cost + denominator.cost, min(numerator.dof, denominator.dof)
    if denominator.value == 0:
        return Estimate(math.nan, math.nan, cost)
    value = numerator.value / denominator.value
    quantile = _quantile(LEVEL, dof)
    share = (_quantile(LEVEL, denominator.dof) * denominator.relative_stderr) ** 2
    if share >= 1:
        return Estimate(value, math.inf, cost, dof)
    variance = numerator.stderr**2 * (1 - share) + (value * denominator.stderr) ** 2
    reach = math.sqrt(variance) / abs(denominator.value) + abs(value) * share / quantile
    return Estimate(value, reach / (1 - share), cost, dof)


def square_root(squared: Estimate) -> Estimate:
    """√x of an estimate of x ≥ 0; NaN below 0. Its 95 % interval holds the roots of the ends of that of x.

    Where x is well known the standard error is the delta method's, σ/2√x.

    >>> print(square_root(Estimate(4.0, 0.04)))
    2 ± 0.01
    """
    if not squared.value >= 0:
        return Estimate(math.nan, math.nan, squared.cost, squared.dof)
    root = math.sqrt(squared.value)
    if not 0 < squared.stderr < math.inf:
        return Estimate(root, squared.stderr, squared.cost, squared.dof)
    low, high = squared.interval(LEVEL)
    reach = max(root - math.sqrt(max(low, 0.0)), math.sqrt(high) - root)
    return Estimate(root, reach / _quantile(LEVEL, squared.dof), squared.cost, squared.dof)


def _quantile(level: float, dof: float) -> float:
    check_level("an interval's level", level)
    tail = 0.5 + level / 2
    return float(ndtri(tail) if math.isinf(dof) else stdtrit(dof, tail))
