"""Curvature of a risk as operators: Hessian, generalised Gauss–Newton, and what the Fisher shares with it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noisescape.linops import SampleMean, SymmetricOperator
from noisescape.linops.tall import lengths
from noisescape.risk import passes
from noisescape.risk.arguments import check_risk
from noisescape.risk.chunking import HESSIAN_PASSES
from noisescape.risk.passes import GradientGraph
from noisescape.risk.samples import TensorSamples
from noisescape.risk.subsets import restricted
from noisescape.scalars import check_positive

if TYPE_CHECKING:
    from noisescape.risk.empirical_risk import EmpiricalRisk


class Hessian(SymmetricOperator):
    """H = ∇²L(θ), (D, D); symmetric, usually indefinite.

    Blocks, and on a busy GPU single vectors, are pushed forward through the gradient where the model's operations
    allow it and the memory budget holds several columns. Others, and blocks where the parameters outweigh the
    activations, take a reverse pass a column through the graph of the gradient; it is kept with the operator where
    those of all samples fit the memory budget: each further product is a single reverse pass.

    θ is not copied: it must not be changed in place.
    """

    def __init__(self, risk: EmpiricalRisk, theta: Tensor) -> None:
        super().__init__(risk.dimension, dtype=risk.dtype, device=risk.device, psd=False, name="Hessian")
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk._chunking.budget)
        self._graphs: list[GradientGraph] | None = None

    @functools.cached_property
    def _keeps_graphs(self) -> bool:
        samples = self.risk._samples
        return samples.on_every_rank(self.risk._chunking.holds_graphs and isinstance(samples.own, TensorSamples))

    def _matmat(self, block: Tensor) -> Tensor:
        risk = self.risk
        chunking = risk._chunking
        # in reverse, through kept graphs, where there is little to compute but products with the weights
        keeps = self._keeps_graphs
        reverse = keeps and chunking.parameters_dominate
        count = block.shape[1]
        several = count > 1 and chunking.columns(chunking.samples(passes=HESSIAN_PASSES, columns=count)) > 1
        together = several or chunking.fills_gpu
        if together and not reverse and risk._capabilities.forward_over_reverse:  # finding that out costs
            return passes.hvp_by_forward_mode(risk, self.theta, block)
        if self._graphs is None and keeps:
            self._graphs = list(passes.gradient_graphs(risk, self.theta))
        risk._samples.check_same(self.theta, block)
        directions = block[:, 0] if block.shape[1] == 1 else block
        graphs = self._graphs or passes.gradient_graphs(risk, self.theta)
        return passes.hvp_through(risk, graphs, directions).view_as(block)

    def over_samples(self) -> SampleMean | None:
        """∇²ℓ_n of each sample: where one alone keeps a processor busy, and none lies with another rank."""
        risk = self.risk
        if not risk._chunking.keeps_busy_alone or not isinstance(risk._samples, TensorSamples):
            return None

        def of_one(sample: int) -> SymmetricOperator:
            return Hessian(restricted(risk, torch.tensor([sample], device=self.device)), self.theta)

        return SampleMean(risk.sample_count, of_one)


class DifferenceHessian(SymmetricOperator):
    """H by central differences, for models without second derivatives; two gradients a product.

    Hv ≈ (∇L(θ + hv̂) − ∇L(θ − hv̂))·‖v‖/(2h) with v̂ = v/‖v‖.

    The error is h²/6 of a third derivative and the gradient's rounding error over h. It is stated, not bounded:
    products along the gradient and along a random direction are taken with h and with 2h, and differ by three times
    the first and half the second. Where they differ much, or the gradient jumps (as that of quantised networks
    does), it is large, and a smaller or larger h may help.

    Args:
        risk: whose gradient.
        theta: where, (D,).
        step: h; by default ε^{1/3}·max(‖θ‖, 1), with ε the precision of the dtype.

    Attributes:
        step: h.
        relative_error: ‖H_h v − H_{2h} v‖/‖H_h v‖, the larger of two directions.
    """

    def __init__(self, risk: EmpiricalRisk, theta: Tensor, *, step: float | None = None) -> None:
        check_risk(risk)
        risk, theta = risk._for_operators(theta)
        super().__init__(
            risk.dimension, dtype=risk.dtype, device=risk.device, psd=False, name="finite-difference Hessian"
        )
        if step is not None:
            check_positive("step", step)
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk._chunking.budget)
        size = max(float(lengths(theta)), 1.0)
        self.step = torch.finfo(theta.dtype).eps ** (1 / 3) * size if step is None else step
        generator = torch.Generator(theta.device).manual_seed(0)
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        found = [self._error_along(v) for v in (risk.gradient(theta), noise) if bool(v.any())]
        self.relative_error = max(found, default=0.0)

    def _error_along(self, direction: Tensor) -> float:
        one, two = self._along(direction, self.step), self._along(direction, 2 * self.step)
        size = float(lengths(one))
        return float(lengths(one - two)) / size if size else 0.0

    def _along(self, direction: Tensor, step: float) -> Tensor:
        size = lengths(direction)
        if not bool(size > 0):
            return torch.zeros_like(direction)
        move = direction * (step / size)
        rise = self.risk.gradient(self.theta + move) - self.risk.gradient(self.theta - move)
        return rise * (size / (2 * step))

    def _matmat(self, block: Tensor) -> Tensor:
        return torch.stack([self._along(column, self.step) for column in block.T], dim=1)


class GaussNewton(SymmetricOperator):
    """(1/N) Σ_n J_nᵀ (∇²_f ℓ_n) J_n, (D, D); tagged PSD, as it is for losses convex in the outputs.

    θ is not copied: it must not be changed in place.
    """

    def __init__(self, risk: EmpiricalRisk, theta: Tensor, *, name: str = "Gauss–Newton") -> None:
        super().__init__(risk.dimension, dtype=risk.dtype, device=risk.device, psd=True, name=name)
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk._chunking.budget)

    def _matmat(self, block: Tensor) -> Tensor:
        directions = block[:, 0] if block.shape[1] == 1 else block
        return passes.ggnvp(self.risk, self.theta, directions).view_as(block)

    def quadratic_forms(self, columns: Tensor) -> Tensor:
        """vᵀAv of each column: only the outputs' derivatives along v are needed, no reverse pass."""
        self.products += columns.shape[1]
        if columns.shape[1] == 0:
            return columns.new_zeros(0)
        return passes.ggn_forms(self.risk, self.theta, columns)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of N(0, A), (count, D): one reverse pass each."""
        return passes.ggn_draws(self.risk, self.theta, count, generator)


def gauss_newton_control(risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator | None:
    """The Gauss–Newton matrix as a control variate for H: where its quadratic forms are cheap, else None."""
    return risk.gauss_newton(theta) if risk._capabilities.gauss_newton_forms else None
