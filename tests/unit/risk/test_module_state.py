"""Modules that change or remember: refused, or put back wherever the state is kept."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64
from networks import X, Y, network

CE = nn.functional.cross_entropy


@pytest.mark.parametrize("change", ["replaced", "appended", "parameter added"])
def test_a_structure_that_changed_since_is_refused(change: str) -> None:
    model = network()
    risk = ns.EmpiricalRisk(model, CE, (X, Y))
    theta = risk.parameters()
    if change == "replaced":
        model[0] = nn.Linear(6, 8).to(F64)
    elif change == "appended":
        model.append(nn.Linear(3, 3).to(F64))
    else:
        model[0].extra = nn.Parameter(torch.zeros(2, dtype=F64))
    with pytest.raises(ValueError, match="structure has changed"):
        risk.loss(theta)


class _Box:
    """State in an object of somebody's own."""


class Remembering(nn.Module):
    """State in every place a module can keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.target = [network().requires_grad_(False)]
        self.listed, self.named = [torch.zeros(3, dtype=F64)], {"mean": torch.zeros(3, dtype=F64)}
        self.paired = (torch.zeros(3, dtype=F64), 0)
        self.array, self.box = np.zeros(3), _Box()
        self.box.count = 0

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layers(x) + self.target[0](x)
        with torch.no_grad():
            for held in (self.listed[0], self.named["mean"], self.paired[0]):
                held.mul_(0.9).add_(1.0)
            self.array += 1
            self.box.last = outputs
            self.box.count += 1
        return outputs


def test_state_is_put_back_wherever_it_is_kept() -> None:
    model = Remembering()
    risk = ns.EmpiricalRisk(model, CE, (X, Y))
    theta = risk.parameters()
    first = risk.loss(theta)
    risk.per_sample_gradients(theta)
    risk.hessian(theta) @ torch.stack([theta, theta], dim=1)
    risk.losses(torch.stack([theta, theta]))
    gc.collect()
    for held in (model.listed[0], model.named["mean"], model.paired[0]):
        assert torch.equal(held, torch.zeros(3, dtype=F64))
    assert not model.array.any()
    assert vars(model.box) == {"count": 0}
    assert torch.equal(risk.loss(theta), first)
