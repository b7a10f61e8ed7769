"""What can be watched along a trajectory: each a function (risk, θ) ↦ value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, kind_of
from noisescape.linops import ToleranceWarning, product_trace, trace
from noisescape.linops.probing import check_tolerance
from noisescape.linops.tall import inner_product
from noisescape.measurement.bounds import decay_exponent, projection_coefficient
from noisescape.measurement.loss_budget import gradient_forms
from noisescape.measurement.relative_alignment import relative_alignment
from noisescape.measurement.sharpness import expected_sharpness
from noisescape.risk import EmpiricalRisk, Metric, gauss_newton_control
from noisescape.risk.hessian_pairs import leading_hessian_pairs
from noisescape.risk.passes import unchecked_losses
from noisescape.scalars import check_flag, check_positive, check_seed, check_whole

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
    if not isinstance(steps, Iterable):
        raise InvalidTypeError(f"steps are several, [0, 10], not {kind_of(steps)}")
    chosen = frozenset(steps)
    for step in chosen:
        check_whole("each of steps", step, 0)
    return AtSteps(recorder, chosen)


def tolerant(recorder: Recorder) -> Recorder:
    """``recorder`` without warnings of a tolerance not reached: the standard errors that it records say so."""

    def record(risk: EmpiricalRisk, theta: Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)
            return recorder(risk, theta)

    return record


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


def indicator(
    batch_size: int, *, replacement: bool = True, rtol: float = 0.05, max_products: int = 10_000, seed: int = 0
) -> Recorder:
    """Tr(HΣ_B) and its standard error."""
    check_whole("batch_size", batch_size)
    check_flag("replacement", replacement)
    check_tolerance(rtol, max_products, seed)

    def single(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, float]:
        covariance = risk.noise_covariance(theta, batch_size, replacement=replacement)
        control = gauss_newton_control(risk, theta)
        found = product_trace(
            risk.hessian(theta), covariance, control=control, rtol=rtol, max_products=max_products, seed=seed
        )
        return found.value, found.stderr

    def record(risk: EmpiricalRisk, theta: Tensor) -> Mapping[str, Tensor]:
        return _each(single, risk, theta, ("value", "stderr"))

    return record


def conditions(
    batch_size: int,
    *,
    replacement: bool = True,
    k: int = 20,
    rtol: float = 0.05,
    max_products: int = 100,
    seed: int = 0,
) -> Recorder:
    """Tr(HΣ_B), its isotropic reference TrH·TrΣ_B/D, a, d and λ₁: to the accuracy that a curve needs.

    a is the projection coefficient of condition (2), d the decay exponent of condition (1) at k, λ₁ the largest
    eigenvalue of H. Only the first two scale with B, both by c(B); see
    :func:`~noisescape.risk.gradient_covariance.covariance_factor`.

    Args:
        batch_size: B of the gradient noise.
        replacement: its sampling law.
        k: of condition (1), below D; so many directions are also taken out of the probes.
        rtol: relative standard error asked of both traces.
        max_products: bound on the cost of each.
        seed: of the probes, the same at every step: along a curve their errors are correlated.
    """
    check_whole("batch_size", batch_size)
    check_flag("replacement", replacement)
    check_whole("k", k)
    check_tolerance(rtol, max_products, seed)
    names = (
        *("trace_h_sigma", "trace_h_sigma_stderr", "isotropic_reference", "isotropic_reference_stderr"),
        *("projection_coefficient", "decay_exponent", "largest_eigenvalue"),
    )

    def single(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, ...]:
        covariance = risk.noise_covariance(theta, batch_size, replacement=replacement)
        hessian = risk.hessian(theta)
        values, vectors = leading_hessian_pairs(risk, theta, k + 1)
        first = vectors[:, 0]
        total = trace(hessian, rtol=rtol, deflate=vectors, max_products=max_products, seed=seed)
        control = gauss_newton_control(risk, theta)
        found = product_trace(
            hessian, covariance, control=control, rtol=rtol, deflate=k, max_products=max_products, seed=seed
        )
        size = float(covariance.trace())
        reference = total.scaled(size / risk.dimension)
        along_first = float(inner_product(first, covariance @ first))
        top = float(values[0])
        a = projection_coefficient(along_first, top, total.value, size)
        d = decay_exponent(top, float(values[-1]), risk.dimension)
        return found.value, found.stderr, reference.value, reference.stderr, a, d, top

    def record(risk: EmpiricalRisk, theta: Tensor) -> Mapping[str, Tensor]:
        return _each(single, risk, theta, names)

    return record


def gradient(risk: EmpiricalRisk, theta: Tensor) -> Mapping[str, Tensor]:
    """‖ḡ‖² and ḡᵀHḡ, exact; with :func:`indicator` what :func:`noisescape.theory.loss_account` adds up."""

    def single(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, ...]:
        return gradient_forms(risk, theta, risk.hessian(theta))

    return _each(single, risk, theta, ("squared_norm", "curvature"))


def alignment(*, rtol: float = 0.05, max_products: int = 200, seed: int = 0) -> Recorder:
    """A = Tr(HC)·TrH/(TrC·TrH²), A of its shuffled control, and their quotient, with standard errors.

    See :func:`noisescape.measurement.relative_alignment`. None of them depends on B.
    """
    check_tolerance(rtol, max_products, seed)
    kinds = ("noise", "shuffled", "gain")
    names = tuple(f"{kind}{part}" for kind in kinds for part in ("", "_stderr"))

    def single(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, ...]:
        found = relative_alignment(risk, theta, rtol=rtol, max_products=max_products, seed=seed)
        return tuple(x for kind in kinds for x in (getattr(found, kind).value, getattr(found, kind).stderr))

    def record(risk: EmpiricalRisk, theta: Tensor) -> Mapping[str, Tensor]:
        return _each(single, risk, theta, names)

    return record


def sharpness(delta: float, *, draws: int = 100, seed: int = 0) -> Recorder:
    """Expected sharpness at scale δ, signed and absolute, with their standard errors."""
    check_positive("delta", delta)
    check_whole("draws", draws, 2)
    check_seed(seed)

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
