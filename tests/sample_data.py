"""Twelve samples of 4 numbers in 3 classes, a linear model, and what its losses and gradients are."""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from cases import F64, classes, normal
from noisescape.risk import EmpiricalRisk

N = 12
X, Y = normal(N, 4, seed=1), classes(N, of=3, seed=2)
TIGHT = 500
"""Bytes in which the data are not held."""


def linear() -> nn.Module:
    model = nn.Linear(4, 3).to(F64)
    with torch.no_grad():
        model.weight.copy_(normal(3, 4, seed=3))
        model.bias.copy_(normal(3, seed=4))
    return model


MODEL = linear()


def losses(x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.cross_entropy(MODEL(x), y, reduction="none").detach()


def gradients(x: Tensor = X, y: Tensor = Y) -> Tensor:
    rows = [
        torch.autograd.grad(F.cross_entropy(MODEL(x[n : n + 1]), y[n : n + 1]), [*MODEL.parameters()])
        for n in range(len(x))
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def build(data: Any, **options: Any) -> EmpiricalRisk:
    return EmpiricalRisk(MODEL, nn.CrossEntropyLoss(), data, **options)


class Rowwise(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        return X[n], Y[n]


class Mapped(collections.UserDict[str, Any]):
    pass
