"""SVAG: minibatch gradient descent that goes over to its stochastic differential equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import NoiseState
from noisescape.dynamics.minibatch import DrawnNoise
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import drawn_gradient
from noisescape.scalars import check_whole


@dataclass(frozen=True)
class SVAG(DrawnNoise):
    """θ ← θ − η(½(1+r)g₁ + ½(1−r)g₂), r = √(2ℓ−1), with g₁ and g₂ the gradients of two batches drawn independently.

    The mean is ∇L and Cov ε = ½(1+r²)Σ_B = ℓΣ_B. At the learning rate η/ℓ, ℓ steps therefore do to mean and
    covariance, to first order, what one step of SGD does at η: for every ℓ, :class:`SVAG` has the same stochastic
    differential equation, dθ = −∇L dt + √η Σ_B^½ dW, and comes nearer to it the larger ℓ is. If SGD itself, ℓ = 1,
    is as far along its course as large ℓ are, the equation describes it.

    Args:
        batch_size: B, of each of the two batches.
        replacement: the sampling law of a batch.
        ell: ℓ ≥ 1.

    Source: Li, Malladi & Arora (2021), arXiv 2102.12470.
    """

    name: ClassVar[str] = "svag"
    memoryless: ClassVar[bool] = True

    ell: int = 1

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        check_whole(f"{self.name}: ell", self.ell)

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        covariance = risk.noise_covariance(theta, self.batch_size, replacement=self.replacement)
        return covariance * self.ell, None

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        spread = (2 * self.ell - 1) ** 0.5
        found = torch.zeros_like(theta)
        for weight in ((1 + spread) / 2, (1 - spread) / 2):
            if weight:  # SGD at ℓ = 1, draw for draw
                batch = self.draw_batch(risk, theta.shape[:-1], generator)
                found += weight * drawn_gradient(risk, theta, batch)
        return found, state.next()

    @override
    def draw(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        return self.noisy_gradient(risk, theta, NoiseState(), generator)[0] - risk.gradient(theta)
