"""What can be watched along a trajectory: each a function (risk, θ) ↦ value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisescape.linops import product_trace
from noisescape.measurement.sharpness import expected_sharpness
from noisescape.risk import EmpiricalRisk, Metric, gauss_newton_control
from noisescape.risk.passes import unchecked_losses

Recorder = Callable[[EmpiricalRisk, Tensor], Any]
"""(risk, θ) ↦ a scalar, one value a replica (R,), or a mapping of names to such."""


@dataclass(frozen=True)
class AtSteps:
    """A recorder with steps of its own."""

    recorder: Recorder
    steps: frozenset[int]

    def __call__(self, risk: EmpiricalRisk, theta: Tensor) -> Any:
        """What the recorder returns."""
        return self.recorder(risk, theta)


def at_steps(recorder: Recorder, steps: Iterable[int]) -> AtSteps:
    """Call ``recorder`` at these steps only: for those that cost much."""
    return AtSteps(recorder, frozenset(steps))


def loss(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """The training loss L(θ); infinite values are recorded as they are."""
    return unchecked_losses(risk, theta).mean(-1)


def accuracy(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """The training accuracy."""
    return risk.accuracy(theta)


def metric(function: Metric) -> Recorder:
    """The mean over training samples of ``function(outputs, targets)``."""
    return lambda risk, theta: risk.metric(theta, function)


def on(other: EmpiricalRisk, recorder: Recorder) -> Recorder:
    """``recorder`` evaluated on another risk, a test set's say, whatever is being simulated."""
    return lambda _risk, theta: recorder(other, theta)


def indicator(batch_size: int, *, replacement: bool = True, rtol: float = 0.05, seed: int = 0) -> Recorder:
    """Tr(HΣ_B) and its standard error."""

    def single(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, float]:
        covariance = risk.noise_covariance(theta, batch_size, replacement=replacement)
        control = gauss_newton_control(risk, theta)
        found = product_trace(risk.hessian(theta), covariance, control=control, rtol=rtol, seed=seed)
        return found.value, found.stderr

    def record(risk: EmpiricalRisk, theta: Tensor) -> Mapping[str, Tensor]:
        return _each(single, risk, theta, ("value", "stderr"))

    return record


def sharpness(delta: float, *, draws: int = 100, seed: int = 0) -> Recorder:
    """Expected sharpness at scale δ, signed and absolute, with their standard errors."""

    def single(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, ...]:
        found = expected_sharpness(risk, theta, delta=delta, draws=draws, seed=seed)
        return found.signed.value, found.signed.stderr, found.absolute.value, found.absolute.stderr

    names = ("signed", "signed_stderr", "absolute", "absolute_stderr")

    def record(risk: EmpiricalRisk, theta: Tensor) -> Mapping[str, Tensor]:
        return _each(single, risk, theta, names)

    return record


def _each(
    single: Callable[[EmpiricalRisk, Tensor], tuple[float, ...]],
    risk: EmpiricalRisk,
    theta: Tensor,
    names: tuple[str, ...],
) -> dict[str, Tensor]:
    """The named figures of one θ, or of every replica; NaN where the loss is not finite."""

    def figures(row: Tensor) -> tuple[float, ...]:
        finite = bool(torch.isfinite(unchecked_losses(risk, row)).all())
        return single(risk, row) if finite else (math.nan,) * len(names)

    if theta.ndim == 1:
        columns: Iterable[Any] = figures(theta)
    else:
        columns = zip(*(figures(row) for row in theta), strict=True)
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in zip(names, columns, strict=True)}
