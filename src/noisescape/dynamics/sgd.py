"""Stochastic gradient descent with minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import NoiseState
from noisescape.dynamics.minibatch import DrawnNoise
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class SGD(DrawnNoise):
    """θ ← θ − η (1/B) Σ_{n∈batch} g_n, a fresh batch each step.

    ε is the minibatch gradient minus the full one; Cov ε = Σ_B exactly, non-Gaussian for small B.

    Args:
        batch_size: B.
        replacement: whether a batch may hold a sample twice; batches of different steps are independent
            either way.
    """

    name: ClassVar[str] = "sgd"

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        batch = self.draw_batch(risk, theta.shape[:-1], generator)
        return risk.minibatch_gradient(theta, batch), state.next()

    @override
    def draw(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        batch = self.draw_batch(risk, theta.shape[:-1], generator)
        return risk.minibatch_gradient(theta, batch) - risk.gradient(theta)
