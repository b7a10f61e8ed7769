"""The arms of the noise-knob experiment: five ways to take a step of the same size and rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from noisescape.dynamics import SGD
from noisescape.dynamics.base import NoiseState
from noisescape.dynamics.minibatch import MinibatchNoise
from noisescape.errors import InvalidValueError
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.training import as_if_batch

Losses = Callable[[Tensor, Tensor], Tensor]
"""(θ, indices of n samples) ↦ their losses (n,), differentiable in θ."""


def network_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Losses:
    """Cross-entropy of single samples as a function of the flat θ, in the order of ``model.named_parameters()``."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def losses(theta: Tensor, indices: Tensor) -> Tensor:
        parts = zip(shapes.items(), theta.split(sizes), strict=True)
        named = {name: part.view(shape) for (name, shape), part in parts}
        outputs = torch.func.functional_call(model, named, (inputs[indices],))
        return nn.functional.cross_entropy(outputs, targets[indices], reduction="none")

    return losses


class LargeBatch(SGD):
    """The mean gradient of B samples."""

    name: ClassVar[str] = "large-batch"


class SmallBatch(SGD):
    """The mean gradient of b samples."""

    name: ClassVar[str] = "small-batch"


@dataclass(frozen=True)
class FromLargeBatch(MinibatchNoise):
    """A step made from the losses of a large batch, drawn with replacement.

    Args:
        batch_size: B.
        small: b, a divisor of B below it.
        losses: of single samples; identified by the risk that a trajectory runs on.
    """

    small: int
    losses: Losses = field(repr=False, compare=False)

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        if not (0 < self.small < self.batch_size and self.batch_size % self.small == 0):
            raise InvalidValueError(
                f"the small batch must divide the large one and be below it, not {self.small} of {self.batch_size}"
            )

    def micro_gradients(self, theta: Tensor, batch: Tensor) -> Tensor:
        """The mean gradients of the batch's K = B/b parts of b samples, (K, D), differentiable in θ."""

        def mean_loss(point: Tensor, part: Tensor) -> Tensor:
            return self.losses(point, part).mean()

        return torch.func.vmap(torch.func.grad(mean_loss), (None, 0))(theta, batch.view(-1, self.small))


class AsIfSmall(FromLargeBatch):
    """The gradient of the large batch's losses re-weighted by `as_if_batch`: Cov = C/b."""

    name: ClassVar[str] = "as-if-small"

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return risk.noise_covariance(theta, self.small), None

    @override
    @torch.enable_grad()
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        leaf = theta.detach().requires_grad_()
        batch = self.draw_batch(risk, torch.Size(), generator)
        loss = as_if_batch(self.losses(leaf, batch), self.small, generator=generator)
        return torch.autograd.grad(loss, leaf)[0], state.next()


class Isotropic(FromLargeBatch):
    """The large batch's mean gradient plus ε ~ N(0, τ/D·I), so that the whole noise has the small batch's trace.

    τ = (1/K) Σ‖G_k − Ḡ‖² over the batch's own K = B/b micro-gradients, without bias Tr C·(1/b − 1/B).
    """

    name: ClassVar[str] = "isotropic"

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        batch = self.draw_batch(risk, torch.Size(), generator)
        micro = self.micro_gradients(theta.detach(), batch)
        mean = micro.mean(0)
        trace = (micro - mean).square().sum() / len(micro)
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        return mean + (trace / len(theta)).sqrt() * noise, state.next()


@dataclass(frozen=True)
class MicroGradientPenalty(FromLargeBatch):
    """The large batch's gradient of L_B + c·(1/K) Σ_k ‖∇L_k‖², over its own K = B/b micro-batches.

    No noise is added. Small batches themselves move along such a loss with c = η/4 (Smith et al. 2021,
    arXiv 2101.12176); as an explicit regulariser it recovers in full-batch training what their noise gives
    (Geiping et al. 2021, arXiv 2109.14119).

    Args:
        strength: c.
    """

    strength: float = field(kw_only=True)
    name: ClassVar[str] = "gradient-penalty"

    @override
    @torch.enable_grad()
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        leaf = theta.detach().requires_grad_()
        micro = self.micro_gradients(leaf, self.draw_batch(risk, torch.Size(), generator))
        penalty = self.strength * micro.square().sum(1).mean()
        return (micro.mean(0) + torch.autograd.grad(penalty, leaf)[0]).detach(), state.next()
