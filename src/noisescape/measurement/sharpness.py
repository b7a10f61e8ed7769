"""Expected sharpness: how much the loss rises under random perturbations of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate, mean_of_draws
from noisescape.risk import EmpiricalRisk, layer_sizes
from noisescape.risk.arguments import check_point
from noisescape.risk.passes import unchecked_losses
from noisescape.scalars import check_positive, check_seed, check_whole

RELATIVE_DELTA = 0.1
"""δ of the layer-relative sharpness, a share of the weights."""


@dataclass(frozen=True)
class Sharpness:
    """Expected sharpness at scale δ, two ways.

    Attributes:
        signed: E[L(θ+ν) − L(θ)], ν ~ N(0, δ²I): (δ²/2)·TrH to second order.
        absolute: E|L(θ+ν) − L(θ)|, the quantity of the published code: larger wherever the sign varies.
        delta: δ.
    """

    signed: Estimate
    absolute: Estimate
    delta: float

    def __str__(self) -> str:
        return f"E[ΔL] = {self.signed}, E|ΔL| = {self.absolute} at δ = {self.delta:g}"


def expected_sharpness(
    risk: EmpiricalRisk, theta: Tensor, *, delta: float = 1e-2, draws: int = 100, seed: int = 0
) -> Sharpness:
    """Average L(θ+ν) − L(θ) over perturbations ν ~ N(0, δ²I).

    Costs are counted in evaluations of the loss. Both figures are non-finite where a perturbed loss is.

    Args:
        risk: L.
        theta: where, (D,).
        delta: δ, in units of the parameters.
        draws: how many perturbations.
        seed: of the perturbations.

    Raises:
        NonFiniteLossError: the loss at θ is not finite.
        ValueError: draws < 2, δ ≤ 0, or several θ.
    """
    check_point(risk, theta)
    check_positive("delta", delta)
    return _sharpness(risk, theta, delta, delta, draws, seed)


def layer_relative_sharpness(
    risk: EmpiricalRisk, theta: Tensor, *, delta: float = RELATIVE_DELTA, draws: int = 100, seed: int = 0
) -> Sharpness:
    """The same with perturbations in proportion to the weights: ν ~ N(0, δ²s²) in a parameter tensor of RMS s.

    (δ²/2)·Σ_l s_l²·TrH_ll to second order, H_ll the block of tensor l. Growth of the weights alone lowers the
    expected sharpness of a network whose layers can be rescaled without changing it (Dinh et al., 2017); this
    stays what it is when a whole tensor is rescaled against another. A tensor of zeros is not perturbed.

    Args:
        risk: L.
        theta: where, (D,).
        delta: δ, a share of each tensor's RMS.
        draws: how many perturbations.
        seed: of the perturbations.

    Raises:
        NonFiniteLossError: the loss at θ is not finite.
        ValueError: draws < 2, δ ≤ 0, or several θ.
    """
    check_point(risk, theta)
    check_positive("delta", delta)
    parts = theta.split(layer_sizes(risk), -1) if theta.ndim == 1 else (theta,)
    scale = torch.cat([part.square().mean().sqrt().expand(part.shape) for part in parts])
    return _sharpness(risk, theta, delta, delta * scale, draws, seed)


def _sharpness(
    risk: EmpiricalRisk, theta: Tensor, delta: float, spread: float | Tensor, draws: int, seed: int
) -> Sharpness:
    """Both figures for perturbations of this standard deviation, one or (D,)."""
    check_whole("draws", draws)
    check_seed(seed)
    if draws < 2:
        raise InvalidValueError(f"draws = {draws}, but a standard error needs at least 2")
    if theta.ndim != 1:
        raise InvalidValueError(f"expected sharpness is that of one θ (D,), not of shape {tuple(theta.shape)}")
    generator = torch.Generator(theta.device).manual_seed(seed)
    base = risk.loss(theta).double()
    rises = torch.empty(draws, dtype=torch.float64)
    for draw in range(draws):
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        rises[draw] = (unchecked_losses(risk, theta + spread * noise).mean().double() - base).cpu()
    return Sharpness(mean_of_draws(rises, draws + 1), mean_of_draws(rises.abs(), draws + 1), delta)
