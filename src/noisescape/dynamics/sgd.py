"""Stochastic gradient descent with minibatches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from noisescape.dynamics.base import MinibatchNoise, NoiseState, draw_batches
from noisescape.linops import SymmetricOperator
from noisescape.risk import EmpiricalRisk


@dataclass(frozen=True)
class SGD(MinibatchNoise):
    """θ ← θ − η (1/B) Σ_{n∈batch} g_n, a fresh batch each step.

    ε is the minibatch gradient minus the full one; Cov ε = Σ_B exactly, non-Gaussian for small B.

    Args:
        batch_size: B.
        replacement: whether a batch may hold a sample twice; batches of different steps are independent
            either way.
    """

    name: ClassVar[str] = "sgd"

    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        """The minibatch gradient."""
        indices = draw_batches(theta.shape[:-1], risk.sample_count, self.batch_size, self.replacement, generator)
        return risk.minibatch_gradient(theta, indices), replace(state, step=state.step + 1)

    def covariance(self, risk: EmpiricalRisk, theta: Tensor) -> SymmetricOperator:
        """Σ_B."""
        return risk.noise_covariance(theta, self.batch_size, replacement=self.replacement)
