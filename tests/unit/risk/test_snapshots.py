"""The comparison of modules itself: every damage is noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cases import F64
from snapshots import Snapshot
from whole_modules import Counting

DAMAGES: dict[str, Callable[[nn.Module], object]] = {
    "a value": lambda model: model.first.weight.detach()[0, 0].add_(1e-15),
    "an object": lambda model: setattr(model.first, "weight", nn.Parameter(model.first.weight.detach().clone())),
    "a frozen parameter": lambda model: model.first.weight.requires_grad_(False),
    "a gradient": lambda model: setattr(model.first.weight, "grad", torch.zeros(5, 4, dtype=F64)),
    "a flag": lambda model: model.second.eval(),
    "a buffer": lambda model: model.mean.add_(1),
    "a plain tensor": lambda model: model.total.add_(1),
    "a list": lambda model: model.seen.append(1),
    "a count": lambda model: setattr(model, "calls", 7),
    "an attribute": lambda model: setattr(model, "extra", None),
    "a hook": lambda model: model.first.register_forward_hook(lambda *_: None),
    "a hook of a parameter": lambda model: model.first.weight.register_hook(lambda gradient: gradient),
    "a submodule": lambda model: setattr(model, "second", copy.deepcopy(model.second)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_reference_every_damage_is_noticed(name: str) -> None:
    model = Counting().to(F64)
    snapshot = Snapshot(model)
    assert snapshot.damage() == []
    DAMAGES[name](model)
    assert snapshot.damage() != []
