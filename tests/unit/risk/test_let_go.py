"""A risk, and what it holds, goes when its last user does: not when the garbage collector next comes round."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import noisescape as ns

INPUTS, TARGETS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
KINDS: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (INPUTS.clone(), TARGETS.clone()),
    "loader": lambda: DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=7),
    "batches of unlike shapes": lambda: [(INPUTS[:20], TARGETS[:20]), (INPUTS[:9, None], TARGETS[:9, None])],
}


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_risk_is_let_go(kind: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    data = KINDS[kind]()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        values = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return values.view(targets.shape)

    risk = ns.EmpiricalRisk(model, loss, data)
    theta = risk.parameters()
    hessian, noise = risk.hessian(theta), risk.noise_covariance(theta, 10)
    assert torch.isfinite(hessian @ theta).all()
    assert torch.isfinite(noise @ theta).all()
    ns.product_trace(hessian, noise, rtol=0.5, max_products=20)
    seen = [weakref.ref(risk), weakref.ref(hessian)]
    del risk, hessian, noise, data
    assert [one() for one in seen] == [None, None]
