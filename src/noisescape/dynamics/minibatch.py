"""What the dynamics that are, or are measured against, minibatch gradient descent share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import Dynamics, NoiseState
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradient_covariance import covariance_factor, gradient_moments
from noisescape.risk.passes import drawn_gradient


@dataclass(frozen=True)
class MinibatchNoise(Dynamics):
    """Noise of, or measured against, Σ_B, the covariance of a minibatch gradient; by default Σ_B itself.

    Args:
        batch_size: B.
        replacement: the sampling law of the batches.
    """

    batch_size: int
    replacement: bool = field(default=True, kw_only=True)

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        self.factor(risk)
        super().check(risk)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        return risk.noise_covariance(theta, self.batch_size, replacement=self.replacement), None

    def factor(self, risk: EmpiricalRisk) -> float:
        """Σ_B/C."""
        return covariance_factor(self.batch_size, risk.sample_count, replacement=self.replacement)

    def draw_batch(self, risk: EmpiricalRisk, replicas: torch.Size, generator: torch.Generator) -> Tensor:
        """Indices of a batch (B,), or of one for each replica (R, B)."""
        count = risk.sample_count
        if self.replacement:
            return torch.randint(count, (*replicas, self.batch_size), generator=generator, device=generator.device)
        # the positions of the B smallest of N uniform numbers are a uniform B-subset
        keys = torch.rand(*replicas, count, generator=generator, device=generator.device)
        return keys.topk(self.batch_size, largest=False).indices

    def variances(
        self,
        risk: EmpiricalRisk,
        theta: Tensor,
        batches: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """diag Σ_B, whose sum is Tr Σ_B, and ∇L, in one pass over the per-sample gradients: two of (D,) or (R, D).

        Args:
            risk: L.
            theta: θ, (D,) or (R, D).
            batches: estimate diag Σ_B, without bias, from so many minibatch gradients where N is too large to pass
                over; there is no ∇L then.
            generator: of those batches.
        """
        if batches is None or generator is None:
            gradient, variances = gradient_moments(risk, theta)
            return self.factor(risk) * variances, gradient
        mean, squares = torch.zeros_like(theta), torch.zeros_like(theta)
        for count in range(1, batches + 1):
            found = drawn_gradient(risk, theta, self.draw_batch(risk, theta.shape[:-1], generator))
            step = found - mean  # Welford's update
            mean = mean + step / count
            squares = squares + step * (found - mean)
        return squares / (batches - 1), None


class DrawnNoise(MinibatchNoise):
    """Noise of covariance Σ_B, or one with its spectrum, that is drawn without a root of that covariance."""

    @abstractmethod
    def draw(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        """ε at θ alone, of θ's shape: gradient noise."""

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        return risk.gradient(theta) + self.draw(risk, theta, generator), state.next()
