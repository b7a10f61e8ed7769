"""Noise with SGD's spectrum and its share in every layer, but not its directions: a stricter control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.gld_shuffled import GLDShuffled
from noisescape.risk import EmpiricalRisk, layer_sizes


@dataclass(frozen=True)
class GLDShuffledWithinLayers(GLDShuffled):
    """ε ~ N(0, PΣ_B(θ_t)Pᵀ), P a permutation of the coordinates within each parameter tensor, drawn once.

    As :class:`GLDShuffled`, whose permutation also carries noise from layers that have much of it into those that
    have little; here the trace of the noise in every weight and every bias is SGD's, too. A risk that is not of a
    model is one layer.

    Args:
        batch_size: B of the matched SGD.
        replacement: its sampling law.
        shuffle_seed: of P.
    """

    name: ClassVar[str] = "gld-shuffled-within-layers"

    @override
    def _order(self, risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.shuffle_seed)
        orders, start = [], 0
        for size in layer_sizes(risk):
            orders.append(start + torch.randperm(size, generator=generator))
            start += size
        return torch.cat(orders).to(theta.device)
