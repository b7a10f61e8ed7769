"""Gradient descent with an explicit penalty on the gradient's norm: a control without any noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import NoiseState
from noisescape.dynamics.gd import GD
from noisescape.risk import EmpiricalRisk
from noisescape.scalars import check_real


@dataclass(frozen=True)
class GDGradientPenalty(GD):
    """θ ← θ − η∇(L + s‖∇L‖²) = θ − η(∇L + 2sH∇L): deterministic, one Hessian-vector product a step.

    Backward error analysis finds such a penalty in SGD itself, with s = η/4 (Smith et al. 2021); full-batch
    training with it does about as well (Geiping et al. 2021, arXiv 2109.14119). If it flattens as SGD does,
    flattening does not need noise.

    Args:
        strength: s.
    """

    strength: float
    name: ClassVar[str] = "gd-gradient-penalty"

    @override
    def check(self, risk: EmpiricalRisk) -> None:
        super().check(risk)
        check_real(f"{self.name}: strength", self.strength, 0)

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        gradient = risk.gradient(theta)
        return gradient + 2 * self.strength * risk.hvp(theta, gradient), state.next()
