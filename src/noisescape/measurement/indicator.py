"""Tr(HΣ), what it is compared with, and the conditions under which the noise's shape matters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from noisescape.distributed.shard import is_first
from noisescape.linops import (
    Eigenpairs,
    Estimate,
    FunctionOperator,
    SymmetricOperator,
    eigenpairs,
    product_trace,
    ratio,
    square_root,
    squared_norm,
    trace_and_squared_norm,
)
from noisescape.linops.probing import check_tolerance
from noisescape.linops.tall import inner_products, squared_length
from noisescape.measurement.bounds import decay_exponent, indicator_bounds, projection_coefficient
from noisescape.measurement.figures import MEANING, as_html, as_text, estimates_of, figures_table
from noisescape.risk import EmpiricalRisk, gauss_newton_control, in_operator_precision
from noisescape.risk.arguments import check_hessian
from noisescape.risk.gradient_covariance import covariance_factor
from noisescape.runs.progress import steps_bar
from noisescape.scalars import check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST_TOL = 3e-3
SMALLEST_SUBSPACE = 20
"""Of the smallest eigenvalue. On the LeNet at its minimum, −0.0348 beside λ₁ = 15: 53 products give −0.035 ± 0.007;
a tolerance of 0.01 took 33 for −0.027 ± 0.024, and the undeflated Hessian 243."""


@dataclass(frozen=True)
class Measurement:
    """What :func:`measure` found at one θ. Σ is gradient noise at batch size B; C is that at B = 1.

    Exact figures have standard error 0 (up to rounding). Those read off eigenpairs carry the residual norm,
    a bound rather than a standard deviation.

    Attributes:
        loss: L.
        gradient_norm: ‖ḡ‖₂.
        trace_h: TrH.
        trace_sigma: TrΣ.
        trace_h_sigma: Tr(HΣ), the indicator.
        isotropic_reference: TrH·TrΣ/D = Tr(HΣ̄).
        anisotropy: Tr(HΣ)/Tr(HΣ̄); over 1, the noise's shape helps it escape.
        lower_bound: a·λ₁²D/(TrH)² ≤ anisotropy, for PSD H.
        upper_bound: D·λ₁/TrH ≥ anisotropy, for PSD H.
        projection_coefficient: a = u₁ᵀΣu₁·TrH/(λ₁TrΣ) of condition (2).
        decay_exponent: d = log(λ₁/λ_{k+1})/log D of condition (1); asked for is d > ½. NaN where λ₁ ≤ 0.
        alignment: Tr(HΣ)/(‖H‖_F‖Σ‖_F), the cosine between H and Σ.
        noise_scale: TrC/‖ḡ‖², the simple gradient noise scale, in samples.
        curvature_noise_scale: Tr(HC)/(ḡᵀHḡ), in samples; NaN where ḡᵀHḡ is 0.
        smallest_eigenvalue: λ_D of H; the two bounds hold where it is not negative.
        hessian: leading eigenpairs of H, k + 1 of them where D allows.
        noise: leading eigenpairs of Σ, up to k.
        dimension: D.
        sample_count: N.
        batch_size: B.
        replacement: the sampling law.
        k: of condition (1).
    """

    loss: Estimate
    gradient_norm: Estimate
    trace_h: Estimate
    trace_sigma: Estimate
    trace_h_sigma: Estimate
    isotropic_reference: Estimate
    anisotropy: Estimate
    lower_bound: Estimate
    upper_bound: Estimate
    projection_coefficient: Estimate
    decay_exponent: Estimate
    alignment: Estimate
    noise_scale: Estimate
    curvature_noise_scale: Estimate
    smallest_eigenvalue: Estimate
    hessian: Eigenpairs
    noise: Eigenpairs
    dimension: int
    sample_count: int
    batch_size: int
    replacement: bool
    k: int

    def estimates(self) -> dict[str, Estimate]:
        """All scalar figures by name."""
        return estimates_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON: value, stderr, low, high of every figure; eigenvalues; settings."""
        return {
            **{name: found.to_dict() for name, found in self.estimates().items()},
            "hessian_eigenvalues": self.hessian.values.tolist(),
            "noise_eigenvalues": self.noise.values.tolist(),
            **{name: getattr(self, name) for name in _SETTINGS},
        }

    def table(self) -> Table:
        """A rich table: figure, value with standard error, 95 % interval, meaning."""
        table = figures_table(self)
        for symbol, pairs in (("λ(H)", self.hessian), ("λ(Σ)", self.noise)):
            leading = ", ".join(f"{value:.3g}" for value in pairs.values[:5].tolist())
            table.add_row(symbol, leading, "", "leading eigenvalues")
        return table

    def plot(self) -> Figure:
        """Leading eigenvalues of H and Σ, and the ratios that say what the noise's shape does; 95 % intervals."""
        from noisescape.pictures import Picture  # matplotlib is slow to import

        figure = Picture(9, 3.6)
        left, right = figure.subplots(1, 2)
        for symbol, pairs, colour in (("λ(H)", self.hessian, "#1b7837"), ("λ(Σ)", self.noise, "#762a83")):
            positive = [(rank, value) for rank, value in enumerate(pairs.values.tolist(), 1) if value > 0]
            if positive:
                left.plot(*zip(*positive, strict=True), "o-", markersize=3, color=colour, label=symbol)
        left.set(yscale="log", xlabel="rank", ylabel="eigenvalue")
        left.legend()
        for height, name in enumerate(reversed(_SHAPE)):
            found = self.estimates()[name]
            low, high = found.interval()
            if found.value > 0:
                right.plot([max(low, found.value / 1e3), high], [height, height], color="#444444", linewidth=1)
                right.plot([found.value], [height], "o", color="#762a83")
        right.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
        right.set_yticks(range(len(_SHAPE)), [MEANING[name][0] for name in reversed(_SHAPE)])
        right.set(xscale="log", ylim=(-0.6, len(_SHAPE) - 0.4))
        return figure

    def __str__(self) -> str:
        return as_text(self.table())

    def _repr_html_(self) -> str:
        return as_html(self.table())


_SHAPE = ("anisotropy", "lower_bound", "upper_bound", "projection_coefficient", "alignment")
_SETTINGS = ("dimension", "sample_count", "batch_size", "replacement", "k")


def measure(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    batch_size: int,
    replacement: bool = True,
    k: int = 20,
    rtol: float = 0.01,
    max_products: int = 1000,
    seed: int = 0,
    hessian: SymmetricOperator | None = None,
    progress: bool = True,
) -> Measurement:
    """Measure the indicator Tr(HΣ_B) at θ and all that decides whether the noise's shape matters.

    A risk of half precision is measured in float32, at the same θ.

    Args:
        risk: L.
        theta: where, (D,).
        batch_size: B of the noise.
        replacement: its sampling law.
        k: leading eigenpairs; cut to D − 1 for small D.
        rtol: relative standard error asked of the stochastic figures (TrH, Tr(HΣ), the norms).
        max_products: what the probes of each of them may cost at most, in products with H or Σ. A trace near 0 by
            cancellation, as TrH is at many an initialisation, reaches no relative error: its standard error then
            says how far it got, and a :class:`~noisescape.linops.ToleranceWarning` that it did not.
        seed: of the probes.
        hessian: H of all figures; by default ``risk.hessian(theta)``. Another may be given, such as one by finite
            differences.
        progress: show a bar on the terminal's error stream.

    Raises:
        NonFiniteLossError: the loss at θ is not finite.
        ValueError: B, k or rtol out of range.

    >>> points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> bowl = EmpiricalRisk.from_losses(lambda w: ((w - points) ** 2).sum(1), torch.zeros(3))
    >>> round(measure(bowl, torch.zeros(3), batch_size=5).trace_h.value, 3)
    6.0
    """
    risk, theta = in_operator_precision(risk, theta)
    check_whole("k", k)
    check_tolerance(rtol, max_products, seed)
    factor = covariance_factor(batch_size, risk.sample_count, replacement=replacement)
    if hessian is not None:
        check_hessian(hessian, risk)
    # all shapes are those of C, so that figures free of scale exist even where B = N leaves no noise
    population = risk.noise_covariance(theta, 1)
    loss = float(risk.loss(theta))
    gradient = risk.gradient(theta)
    hessian = risk.hessian(theta) if hessian is None else hessian
    control = gauss_newton_control(risk, theta)
    dimension = risk.dimension
    k = max(1, min(k, dimension - 1))

    with steps_bar("measure", 4, shown=progress and is_first(risk.shard)) as advance:
        curvature = eigenpairs(hessian, min(k + 1, dimension), seed=seed)
        advance(1)
        trace_h, norm_h = trace_and_squared_norm(
            hessian,
            rtol=rtol,
            norm_rtol=min(2 * rtol, 1),
            deflate=curvature.vectors,
            max_products=max_products,
            seed=seed,
        )
        advance(1)
        lowest = _smallest(hessian, curvature, seed)
        advance(1)
        trace_hc = product_trace(
            hessian, population, control=control, rtol=rtol, max_products=max_products, seed=seed + 1
        )
        advance(1)
    trace_c = Estimate(float(population.trace()), 0.0)
    reference = trace_h.scaled(trace_c.value / dimension)
    noise = _noise_eigenpairs(population, k, seed)

    top = Estimate(float(curvature.values[0]), float(curvature.residuals[0]), curvature.cost)
    first = curvature.vectors[:, 0]
    top_noise = float((first * (population @ first)).sum())
    coefficient = projection_coefficient(top_noise, top.value, trace_h.value, trace_c.value)
    lower, upper = indicator_bounds(coefficient, top.value, trace_h.value, dimension)

    norm_c = squared_norm(
        population, rtol=min(2 * rtol, 1), deflate=noise.vectors, max_products=max_products, seed=seed + 3
    )
    squared_gradient = squared_length(gradient)
    gradient_curvature = float((gradient * (hessian @ gradient)).sum())

    return Measurement(
        loss=Estimate(loss, 0.0),
        gradient_norm=Estimate(squared_gradient**0.5, 0.0),
        trace_h=trace_h,
        trace_sigma=trace_c.scaled(factor),
        trace_h_sigma=trace_hc.scaled(factor),
        isotropic_reference=reference.scaled(factor),
        anisotropy=ratio(trace_hc, reference),
        lower_bound=_over_trace(lower, top, trace_h),
        upper_bound=_over_trace(upper, top, trace_h),
        projection_coefficient=_with_relative_error(
            coefficient, math.hypot(trace_h.relative_stderr, top.relative_stderr), trace_h
        ),
        decay_exponent=_decay(curvature, dimension),
        alignment=ratio(ratio(trace_hc, square_root(norm_h)), square_root(norm_c)),
        noise_scale=_quotient(trace_c, squared_gradient),
        curvature_noise_scale=_quotient(trace_hc, gradient_curvature),
        smallest_eigenvalue=Estimate(float(lowest.values[0]), float(lowest.residuals[0]), lowest.cost),
        hessian=curvature,
        noise=replace(noise, values=factor * noise.values, residuals=factor * noise.residuals),
        dimension=dimension,
        sample_count=risk.sample_count,
        batch_size=batch_size,
        replacement=replacement,
        k=k,
    )


def _smallest(hessian: SymmetricOperator, leading: Eigenpairs, seed: int) -> Eigenpairs:
    """The smallest eigenpair, as the largest of λ_k(I − UUᵀ) − (H − UΛUᵀ), U the k leading ones.

    Without those the spectrum is narrow, and the accuracy asked of Lanczos one of the spectrum's width: that of a
    value near 0, where H has thousands, took five times the products.
    """
    count = len(leading.values)
    if count == hessian.size:
        return Eigenpairs(leading.values[-1:], leading.vectors[:, -1:], leading.residuals[-1:], 0)
    values, vectors, shift = leading.values, leading.vectors, float(leading.values[-1])

    def flipped(block: Tensor) -> Tensor:
        along = inner_products(vectors.T, block)
        return shift * block - hessian @ block + vectors @ ((values - shift)[:, None] * along)

    others = FunctionOperator(flipped, hessian.size, dtype=hessian.dtype, device=hessian.device)
    before = hessian.products
    found = eigenpairs(others, 1, tol=SMALLEST_TOL, subspace=min(SMALLEST_SUBSPACE, hessian.size), seed=seed)
    return replace(found, values=shift - found.values, cost=hessian.products - before)


def _noise_eigenpairs(covariance: SymmetricOperator, k: int, seed: int) -> Eigenpairs:
    known = covariance.leading(k)
    if known is not None and len(known[0]) < k:  # the rank is lower: all there are
        values, vectors = known
        return Eigenpairs(values, vectors, torch.zeros_like(values), 0)
    return eigenpairs(covariance, k, seed=seed)


def _decay(curvature: Eigenpairs, dimension: int) -> Estimate:
    top, after = float(curvature.values[0]), float(curvature.values[-1])  # the first and, where there is one, k + 1
    value = decay_exponent(top, after, dimension)
    if not math.isfinite(value):
        return Estimate(value, 0.0 if math.isinf(value) else math.nan, curvature.cost)
    relative = math.hypot(float(curvature.residuals[0]) / top, float(curvature.residuals[-1]) / after)
    return Estimate(value, relative / math.log(dimension), curvature.cost)


def _over_trace(value: float, top: Estimate, trace_h: Estimate) -> Estimate:
    """A figure that is λ₁/TrH times what is exact."""
    numerator = value * trace_h.value
    return ratio(Estimate(numerator, abs(numerator) * top.relative_stderr), trace_h)


def _with_relative_error(value: float, relative: float, source: Estimate) -> Estimate:
    return Estimate(value, abs(value) * relative, source.cost, source.dof)


def _quotient(numerator: Estimate, denominator: float) -> Estimate:
    return numerator.scaled(1 / denominator) if denominator else Estimate(math.nan, math.nan)
