"""Spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops.estimate import Estimate, mean_of_draws
from noisescape.linops.lanczos import gauss_quadratures
from noisescape.linops.operator import ProductCount, SymmetricOperator, check_operand
from noisescape.linops.precision import full_precision
from noisescape.linops.probing import rademacher
from noisescape.scalars import check_positive, check_seed, check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SpectralDensity:
    """The density of a symmetric operator's eigenvalues, smoothed by a Gaussian of width ``bandwidth``.

    Attributes:
        grid: where the density is given, (P,).
        density: (1/D) Σ_i N(grid; λ_i, bandwidth²), (P,); integrates to 1.
        stderr: standard error over probes, (P,).
        nodes: Ritz values of each probe, (probes, steps).
        weights: their quadrature weights, (probes, steps); rows sum to 1.
        bandwidth: of the smoothing.
        cost: operator products spent.
    """

    grid: Tensor
    density: Tensor
    stderr: Tensor
    nodes: Tensor
    weights: Tensor
    bandwidth: float
    cost: int

    def plot(self) -> Figure:
        """The density, on a logarithmic scale, with one standard error about it."""
        from noisescape.pictures import Picture  # matplotlib is slow to import

        figure = Picture(6.4, 3.6)
        axis = figure.subplots()
        least = float(self.density.max()) * 1e-8
        low, high = ((self.density + sign * self.stderr).clamp_min(least) for sign in (-1, 1))
        axis.fill_between(self.grid, low, high, alpha=0.3, color="#1b7837", linewidth=0)
        axis.plot(self.grid, self.density.clamp_min(least), color="#1b7837", linewidth=1)
        axis.set(yscale="log", xlabel="eigenvalue", ylabel="density", ylim=(least, None))
        return figure

    def moment(self, power: int) -> Estimate:
        """Tr(A^power)/D; each probe's quadrature of it is exact for power < 2·steps."""
        return mean_of_draws((self.weights * self.nodes**power).sum(1), self.cost)


@full_precision
def spectral_density(
    operator: SymmetricOperator,
    *,
    steps: int = 80,
    probes: int = 8,
    points: int = 1024,
    bandwidth: float | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """Stochastic Lanczos quadrature of the eigenvalue density.

    Each sign probe z gives, by ``steps`` Lanczos steps with full re-orthogonalisation, a Gauss quadrature
    of the density seen from z; the mean over probes estimates the density of A, their spread its error.

    Args:
        operator: A.
        steps: Lanczos steps per probe, at most D.
        probes: at least 2; run side by side as one block of columns.
        points: of the grid.
        bandwidth: smoothing width in units of eigenvalues; 1 % of the spectrum's width by default.
        seed: of the probes.

    Memory: steps × probes vectors of length D, about 3 × probes more, and what a product takes.

    Raises:
        ValueError: fewer than 2 probes, no step, a bandwidth that is not positive, or an operator of several
            replicas.
        TypeError: an operator whose dtype has no linear algebra.

    Source: Ubaru, Chen & Saad (2017); for networks, Ghorbani, Krishnan & Xiao (2019).
    """
    check_operand(operator)
    check_whole("probes", probes)
    check_whole("steps", steps)
    check_whole("points", points, 2)
    check_seed(seed)
    if probes < 2:
        raise InvalidValueError(f"probes = {probes}, but a standard error needs at least 2")
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)
    count = ProductCount(operator)
    steps = min(steps, operator.size)
    generator = torch.Generator(operator.device).manual_seed(seed)
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    starts = rademacher(operator.size, probes, like, generator).div_(operator.size**0.5)
    nodes, weights = gauss_quadratures(operator, starts, steps)

    low, high = float(nodes.min()), float(nodes.max())
    width = max(high - low, 1e-12 * max(abs(low), abs(high))) or 1.0  # the zero matrix has no scale
    sigma = 0.01 * width if bandwidth is None else float(bandwidth)
    grid = torch.linspace(low - 5 * sigma, high + 5 * sigma, points, dtype=torch.float64)
    nodes, weights = nodes.double().cpu(), weights.double().cpu()
    kernel = torch.exp(-0.5 * ((grid - nodes[..., None]) / sigma) ** 2) / (sigma * (2 * torch.pi) ** 0.5)
    curves = (weights[..., None] * kernel).sum(1)
    return SpectralDensity(
        grid=grid,
        density=curves.mean(0),
        stderr=curves.std(0) / probes**0.5,
        nodes=nodes,
        weights=weights,
        bandwidth=sigma,
        cost=count.spent,
    )
