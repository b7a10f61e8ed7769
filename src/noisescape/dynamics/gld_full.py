"""The Gaussian counterpart of SGD with its whole covariance, at the price of one backward pass."""

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
class GLDFull(DrawnNoise):
    """ε ~ N(0, Σ_B(θ_t)) exactly: ∇L + ε = Gᵀ(1/N + w), w = s(z − mean z)/N, z ~ N(0, I_N).

    s² = N/B with replacement, N(N−B)/(B(N−1)) without, so that Cov ε = (s²/N)·C = Σ_B. No covariance is
    ever computed: the noisy gradient is the gradient of a re-weighted loss.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
    """

    name: ClassVar[str] = "gld-full"
    memoryless: ClassVar[bool] = True

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        # in one pass with the gradient
        return risk.vjp(theta, 1 / risk.sample_count + self._weights(risk, theta, generator)), state.next()

    @override
    def draw(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        return risk.vjp(theta, self._weights(risk, theta, generator))

    def _weights(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        """w, (N,) or (R, N)."""
        number = risk.sample_count
        scale = (number * self.factor(risk)) ** 0.5
        noise = torch.randn(*theta.shape[:-1], number, generator=generator, dtype=theta.dtype, device=theta.device)
        return scale * (noise - noise.mean(-1, keepdim=True)) / number
