"""Small data and a risk over it, for what a newcomer gets wrong with them."""

from __future__ import annotations

import torch
from torch import nn

from cases import F64, classes, normal
from noisescape.risk import EmpiricalRisk

CE = nn.functional.cross_entropy
X, Y = normal(10, 3, seed=1), classes(10, of=3, seed=2)


def linear() -> nn.Module:
    return nn.Linear(3, 3).to(F64)


def build(model: nn.Module | None = None, loss=CE, data=None, **options) -> EmpiricalRisk:
    return EmpiricalRisk(linear() if model is None else model, loss, (X, Y) if data is None else data, **options)


def with_a_nan() -> EmpiricalRisk:
    x = X.clone()
    x[4, 1] = torch.nan
    return build(data=(x, Y))
