"""Models of samples of 4 numbers or 5 words, and the loss that they are refused or accepted with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cases import F64, classes, normal

N = 10
X, Y, WORDS = normal(N, 4, seed=1), classes(N, of=3, seed=2), classes(N, 5, of=7, seed=3)


def unreduced(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def linear(width: int = 4) -> nn.Linear:
    return nn.Linear(width, 3).to(F64)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, dtype=F64), linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(torch.tanh, self.first(x), use_reentrant=True))


class Clamping(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


DATA, TEXT = (X, Y), (WORDS, Y)
