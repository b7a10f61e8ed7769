"""How the noise lies along the curvature: a power law from coordinate to coordinate, and one number for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate, product_trace, ratio, squared_norm
from noisescape.linops.probing import check_tolerance
from noisescape.risk import EmpiricalRisk, in_operator_precision, layer_sizes, tensor_names
from noisescape.scalars import check_seed, check_whole

LEAST_POINTS = 8
"""Coordinates of a layer that a line is put through."""
RESAMPLES = 1000
"""Of the bootstrap, and of the shuffled null."""


@dataclass(frozen=True)
class PowerLaw:
    """C_ii ∝ H_ii^γ over the coordinates of one parameter tensor.

    Attributes:
        exponent: γ, the slope of log C_ii on log H_ii by least squares; its standard error is the bootstrap's over
            coordinates, taken for independent.
        null_low, null_high: between which 95 % of the slopes lie where the same C_ii and H_ii are paired at random.
        correlation: of the logarithms.
        points: coordinates used.
        dropped: of those looked at, the ones that have no logarithm: H_ii ≤ 0, or no noise.
    """

    exponent: Estimate
    null_low: float
    null_high: float
    correlation: float
    points: int
    dropped: int


def alignment_law(
    risk: EmpiricalRisk, theta: Tensor, *, per_layer: int = 200, seed: int = 0
) -> Mapping[str, PowerLaw]:
    """γ of C_ii ∝ H_ii^γ for every parameter tensor with enough coordinates, by name.

    C_ii, the population variance of the samples' gradients, is exact, and so is H_ii, by a Hessian-vector product
    for each coordinate that is looked at. γ = 1 where C ∝ H, as for a well-specified likelihood; between 1 and 2
    has been reported for networks. No B stands in it: Σ_B ∝ C.

    Args:
        risk: L.
        theta: where, (D,).
        per_layer: random coordinates of each tensor that are looked at; a product each.
        seed: of their choice, the bootstrap and the null.

    Returns:
        By parameter name; tensors with fewer than 8 usable coordinates are left out.

    Raises:
        ValueError: ``per_layer`` below 8; no tensor is left.

    Source: arXiv 2602.05600.
    """
    check_whole("per_layer", per_layer)
    check_seed(seed)
    if per_layer < LEAST_POINTS:
        raise InvalidValueError(f"per_layer = {per_layer}, but a line needs at least {LEAST_POINTS} coordinates")
    risk, theta = in_operator_precision(risk, theta)
    sizes = layer_sizes(risk)
    names = tensor_names(risk)
    noise = risk.noise_covariance(theta, 1).diagonal()
    hessian = risk.hessian(theta)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, PowerLaw] = {}
    start = 0
    for name, size in zip(names, sizes, strict=True):
        places = start + torch.randperm(size, generator=generator)[:per_layer].to(theta.device)
        start += size
        if len(places) < LEAST_POINTS:
            continue
        curvature = torch.cat([_entries(hessian @ some, some) for some in _axes(theta, places, hessian.block)])
        law = power_law(noise[places], curvature, seed=seed)
        if law is not None:
            found[name] = law
    if not found:
        raise InvalidValueError("no parameter tensor has 8 coordinates with noise and positive curvature")
    return found


def power_law(noise: Tensor, curvature: Tensor, *, seed: int = 0) -> PowerLaw | None:
    """γ from the diagonals themselves, (n,) each; None where fewer than 8 are both positive."""
    usable = (noise > 0) & (curvature > 0)
    points = int(usable.sum())
    if points < LEAST_POINTS:
        return None
    x, y = (values[usable].double().log().cpu() for values in (curvature, noise))
    generator = torch.Generator().manual_seed(seed)
    again = torch.randint(points, (RESAMPLES, points), generator=generator)
    shuffled = torch.rand(RESAMPLES, points, generator=generator).argsort(dim=1)
    slope, correlation = _slope(x, y)
    error = _slope(x[again], y[again])[0].std()
    low, high = _slope(x, y[shuffled])[0].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    estimate = Estimate(float(slope), float(error), points, points - 2)
    return PowerLaw(estimate, low, high, float(correlation), points, len(noise) - points)


def alignment_factor(
    risk: EmpiricalRisk, theta: Tensor, *, rtol: float = 0.01, max_products: int = 10_000, seed: int = 0
) -> Estimate:
    """μ = Tr(CG)/(2L‖G‖_F²), G the Gauss–Newton matrix and C the covariance of single gradients: dimensionless.

    For squared loss. A μ bounded away from 0 means that noise in the directions of G has at least the strength
    2μL‖G‖_F² whatever their number, and with that bounds ‖G‖_F by 1/η where SGD stays. Multiplying the loss by a
    constant changes nothing. For another loss it is the same quotient, without that consequence.

    Args:
        risk: L, of a model whose loss is a function of the outputs.
        theta: where, (D,).
        rtol: relative standard error asked of each trace.
        max_products: bound on the cost of each.
        seed: of the probes.

    Raises:
        ValueError: L = 0: a fitted sample has no noise, and μ is 0/0; a closed form.

    Source: Wu, Wang & Su (arXiv 2207.02628).
    """
    risk, theta = in_operator_precision(risk, theta)
    check_tolerance(rtol, max_products, seed)
    loss = float(risk.loss(theta))
    if not loss > 0:
        raise InvalidValueError(f"the loss is {loss:g}; μ compares noise with it, and needs one above 0")
    curvature = risk.gauss_newton(theta)
    met = product_trace(curvature, risk.noise_covariance(theta, 1), rtol=rtol, max_products=max_products, seed=seed)
    square = squared_norm(curvature, rtol=rtol, max_products=max_products, seed=seed + 1)
    return ratio(met, square.scaled(2 * loss))


def _axes(theta: Tensor, places: Tensor, block: int) -> list[Tensor]:
    """Unit vectors at these places, as columns, some at a time."""
    return [
        torch.zeros(len(theta), len(some), dtype=theta.dtype, device=theta.device).index_put_(
            (some, torch.arange(len(some), device=theta.device)), theta.new_ones(())
        )
        for some in places.split(max(1, block))
    ]


def _entries(images: Tensor, axes: Tensor) -> Tensor:
    return (images * axes).sum(0)


def _slope(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and correlation of y on x, along the last dimension; 0 where x does not vary."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    together, alone, other = (x * y).sum(-1), x.square().sum(-1), y.square().sum(-1)
    smallest = math.ulp(0.0)
    return together / alone.clamp_min(smallest), together / (alone * other).sqrt().clamp_min(smallest)
