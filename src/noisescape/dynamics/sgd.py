"""Stochastic gradient descent with minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics.base import NoiseState
from noisescape.dynamics.minibatch import DrawnNoise
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import drawn_gradient

Sampling = Literal["independent", "epoch"]


@dataclass(frozen=True)
class SGD(DrawnNoise):
    """θ ← θ − η (1/B) Σ_{n∈batch} g_n, a fresh batch each step.

    ε is the minibatch gradient minus the full one; Cov ε = Σ_B exactly, non-Gaussian for small B.

    With ``sampling="epoch"`` the samples are shuffled and dealt out in N // B batches, then shuffled anew, as a
    ``DataLoader`` with ``shuffle=True, drop_last=True`` does. Every batch by itself is one drawn without
    replacement. Two of one epoch share no sample, so that their noises lean against each other: at one θ,
    E ε_sε_tᵀ = −C/(N−1), which is −Σ_B/(M−1) for M = N/B batches, and all M sum to 0.

    Args:
        batch_size: B.
        replacement: whether a batch may hold a sample twice. Of an epoch's batches none does.
        sampling: whether batches of different steps are independent, or those of an epoch.

    Source of the epoch's noise: Kühn & Rosenow (arXiv 2306.05300).
    """

    name: ClassVar[str] = "sgd"

    sampling: Sampling = "independent"

    def __post_init__(self) -> None:
        if self.sampling not in ("independent", "epoch"):
            raise InvalidValueError(f"sampling is 'independent' or 'epoch', not {self.sampling!r}")
        if self.sampling == "epoch":
            object.__setattr__(self, "replacement", False)

    @property
    def memoryless(self) -> bool:  # type: ignore[override]
        """As its constants have it."""
        return self.sampling == "independent"

    @override
    def noisy_gradient(
        self, risk: EmpiricalRisk, theta: Tensor, state: NoiseState, generator: torch.Generator
    ) -> tuple[Tensor, NoiseState]:
        if self.sampling == "independent":
            batch = self.draw_batch(risk, theta.shape[:-1], generator)
            return drawn_gradient(risk, theta, batch), state.next()
        order, place = state.order, state.step % (risk.sample_count // self.batch_size)
        if order is None or place == 0:
            keys = torch.rand(*theta.shape[:-1], risk.sample_count, generator=generator, device=generator.device)
            order = keys.argsort(dim=-1)
        batch = order[..., place * self.batch_size : (place + 1) * self.batch_size]
        return drawn_gradient(risk, theta, batch), state.next(order=order)

    @override
    def draw(self, risk: EmpiricalRisk, theta: Tensor, generator: torch.Generator) -> Tensor:
        if self.sampling == "epoch":
            raise InvalidTypeError(
                "noise of an epoch's batches hangs together over steps, which single draws do not: take "
                "SGD(batch_size, replacement=False), or run the dynamics itself"
            )
        batch = self.draw_batch(risk, theta.shape[:-1], generator)
        return drawn_gradient(risk, theta, batch) - risk.gradient(theta)
