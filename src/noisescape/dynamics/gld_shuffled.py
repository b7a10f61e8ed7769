"""Noise with the spectrum of SGD's covariance along directions that mean nothing: a control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import NoiseState
from noisescape.dynamics.gld_full import GLDFull
from noisescape.linops import FunctionOperator, SymmetricOperator
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_seed


@dataclass(frozen=True)
class GLDShuffled(GLDFull):
    """ε ~ N(0, PΣ_B(θ_t)Pᵀ), P a permutation of the coordinates, drawn once.

    Eigenvalues and trace are exactly those of Σ_B, the eigenvectors are not: what this noise does, the spectrum
    does. No covariance is computed; a step is two backward passes.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        shuffle_seed: of P.
    """

    shuffle_seed: int = field(default=0, kw_only=True)
    name: ClassVar[str] = "gld-shuffled"

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        check_seed(self.shuffle_seed, f"{self.name}: shuffle_seed")

    @override
    def noise(
        self, risk: EmpiricalRisk, theta: Tensor, previous: SymmetricOperator | None, generator: torch.Generator
    ) -> tuple[SymmetricOperator, Tensor | None]:
        sigma, _ = super().noise(risk, theta, previous, generator)
        order = self._order(risk, theta)
        back = order.argsort()
        shuffled = FunctionOperator(
            lambda block: (sigma @ block[back])[order],
            risk.dimension,
            dtype=risk.dtype,
            device=risk.device,
            psd=True,
            name=f"{self.name} covariance",
            sampler=lambda count, generator: sigma.sample(count, generator)[:, order],
        )
        return shuffled, None

    @override
    def draw(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(risk, theta, generator)[..., self._order(risk, theta)]

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        return risk.gradient(theta) + self.draw(risk, theta, generator), state.next()

    def _order(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.shuffle_seed)
        return torch.randperm(theta.shape[-1], generator=generator).to(theta.device)
