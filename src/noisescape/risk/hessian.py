"""Curvature of a risk as operators: Hessian, generalised Gauss–Newton, and what the Fisher shares with it."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import SymmetricOperator, eigenpairs, largest_eigh, nystrom_pairs
from noisescape.linops.probing import project_out
from noisescape.risk.per_sample_losses import GradientGraph, PerSampleLosses

SMALL = 32
FOLLOWED = 0.99
"""Share of the curvature along the new directions that the old ones must carry to be called followed."""
STIRRED = 0.03
FOLLOWING_STEPS = 6
"""After so many the directions have changed too much: they are found afresh."""


class Hessian(SymmetricOperator):
    """H = ∇²L(θ), (D, D); symmetric, usually indefinite.

    Blocks are pushed forward through the gradient where the model's operations allow it. For single vectors, and
    for blocks where the parameters outweigh the activations, the graph of the gradient is kept with the operator,
    where those of all samples fit the memory budget: each further product is a single reverse pass.

    θ is not copied: it must not be changed in place.
    """

    def __init__(self, risk: PerSampleLosses, theta: Tensor) -> None:
        super().__init__(risk.dimension, dtype=risk.dtype, device=risk.device, psd=False, name="Hessian")
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk.memory_budget)
        self._graph: list[GradientGraph] | None = None

    def _matmat(self, block: Tensor) -> Tensor:
        if block.shape[1] > 1 and self.risk.pushes_gradients and not self.risk.bends_blocks():
            return self.risk.gradient_derivatives(self.theta, block)
        if self._graph is None and self.risk.keeps_graphs():
            self._graph = list(self.risk.gradient_graphs(self.theta))
        directions = block[:, 0] if block.shape[1] == 1 else block
        graphs = self._graph or self.risk.gradient_graphs(self.theta)
        return self.risk.bend(graphs, directions).view_as(block)


class DifferenceHessian(SymmetricOperator):
    """H by central differences: Hv ≈ (∇L(θ + hv̂) − ∇L(θ − hv̂))·‖v‖/(2h), v̂ = v/‖v‖; two gradients a product.

    The error is h²/6 of a third derivative and the gradient's rounding error over h. It is stated, not bounded:
    products along the gradient and along a random direction are taken with h and with 2h, and differ by three times
    the first and half the second. Where they differ much, or the gradient jumps (as that of quantised networks
    does), it is large, and a smaller or larger h may help.

    Args:
        risk: whose gradient.
        theta: where, (D,); not copied.
        step: h; by default ε^{1/3}·max(‖θ‖, 1), with ε the precision of the dtype.

    Attributes:
        step: h.
        relative_error: ‖H_h v − H_{2h} v‖/‖H_h v‖, the larger of two directions.
    """

    def __init__(self, risk: PerSampleLosses, theta: Tensor, *, step: float | None = None) -> None:
        super().__init__(
            risk.dimension, dtype=risk.dtype, device=risk.device, psd=False, name="finite-difference Hessian"
        )
        if step is not None and not step > 0:
            raise InvalidValueError(f"step must be positive, not {step}")
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk.memory_budget)
        size = max(float(torch.linalg.vector_norm(theta)), 1.0)
        self.step = torch.finfo(theta.dtype).eps ** (1 / 3) * size if step is None else step
        generator = torch.Generator(theta.device).manual_seed(0)
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        found = [self._error_along(v) for v in (risk.gradient(theta), noise) if bool(v.any())]
        self.relative_error = max(found, default=0.0)

    def _error_along(self, direction: Tensor) -> float:
        one, two = self._along(direction, self.step), self._along(direction, 2 * self.step)
        size = float(torch.linalg.vector_norm(one))
        return float(torch.linalg.vector_norm(one - two)) / size if size else 0.0

    def _along(self, direction: Tensor, step: float) -> Tensor:
        size = torch.linalg.vector_norm(direction)
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

    def __init__(self, risk: PerSampleLosses, theta: Tensor, *, name: str = "Gauss–Newton") -> None:
        super().__init__(risk.dimension, dtype=risk.dtype, device=risk.device, psd=True, name=name)
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk.memory_budget)

    def _matmat(self, block: Tensor) -> Tensor:
        directions = block[:, 0] if block.shape[1] == 1 else block
        return self.risk.gauss_newton_product(self.theta, directions).view_as(block)

    def quadratic_forms(self, columns: Tensor) -> Tensor:
        """vᵀAv of each column: only the outputs' derivatives along v are needed, no reverse pass."""
        self.products += columns.shape[1]
        if columns.shape[1] == 0:
            return columns.new_zeros(0)
        return self.risk.gauss_newton_forms(self.theta, columns)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of N(0, A), (count, D): one reverse pass each."""
        return self.risk.gauss_newton_draws(self.theta, count, generator)


def leading_hessian_pairs(risk: PerSampleLosses, theta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k algebraically largest eigenpairs of H: values (k,) decreasing, vectors (D, k); or with a leading R.

    Dense for D ≤ 32, where replicas are solved as one batch; else Lanczos for each θ in turn, to the 1 %
    accuracy that the shape of a noise needs.
    """
    if risk.dimension <= SMALL:
        return largest_eigh(risk.dense_hessian(theta), k)
    if theta.ndim == 2:
        found = [leading_hessian_pairs(risk, row, k) for row in theta]
        return torch.stack([pair[0] for pair in found]), torch.stack([pair[1] for pair in found])
    pairs = eigenpairs(Hessian(risk, theta), k, tol=1e-2, subspace=max(2 * k + 1, 12))
    return pairs.values, pairs.vectors


def followed_hessian_pairs(
    risk: PerSampleLosses, theta: Tensor, k: int, previous: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As :func:`leading_hessian_pairs`, from the directions at a point nearby, by block Krylov steps.

    With Y = HU for an orthonormal basis U, at first of the previous directions, H ≈ Y(UᵀY)⁺Yᵀ (Nyström), whose
    leading pairs are better than those of UᵀHU at no further product. What of Y lies outside U is added to it until
    U carries all but 1 % of the curvature that the approximation's k pairs do. A little randomness at the start
    lets in what was not among the previous directions.

    Args:
        risk: L.
        theta: (D,), or (R, D), where nothing is followed.
        k: pairs.
        previous: (D, k), the span of the previous directions; None to start afresh.
        generator: of the randomness.
    """
    if previous is None or theta.ndim == 2 or risk.dimension <= SMALL:
        return leading_hessian_pairs(risk, theta, k)
    hessian = Hessian(risk, theta)
    stirred = torch.randn(previous.shape, generator=generator, dtype=theta.dtype, device=theta.device)
    start = torch.linalg.qr(previous).Q + STIRRED * stirred / len(theta) ** 0.5
    added = torch.linalg.qr(start).Q
    basis = images = added[:, :0]
    for _ in range(FOLLOWING_STEPS):
        image = hessian @ added
        basis, images = torch.cat([basis, added], dim=1), torch.cat([images, image], dim=1)
        values, vectors, carried = nystrom_pairs(basis, images, k)
        if float(carried) >= FOLLOWED * float(values.sum()) > 0:
            return values, vectors
        if not bool(torch.isfinite(values).all()):
            break
        outside = project_out(basis, project_out(basis, image))
        added = torch.linalg.qr(outside).Q
    return leading_hessian_pairs(risk, theta, k)
