"""Inputs and targets may be nested, and hold constants and nothing."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from cases import F64, normal
from noisescape.risk import EmpiricalRisk
from sample_data import MODEL, TIGHT, Mapped, N, X, Y, gradients, linear, losses


class Several(nn.Module):
    """Takes a mapping, a sequence, a flag, a name and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(
        self,
        x: Any,
        more: Any = None,
        mask: Tensor | None = None,
        twice: bool = False,
        mode: str = "plus",
    ) -> Tensor:
        total = x["left"] + x["right"] if isinstance(x, dict) else x
        if more is not None:
            total = total + more[0] * more[1]
        if mask is not None:
            total = total * mask
        found = self.linear(total * 2 if twice else total)
        return -found if mode == "minus" else found


MORE = (normal(N, 4, seed=6), normal(N, 4, seed=7))
MASK = (normal(N, 4, seed=8) > 0).to(F64)
NESTED: dict[str, tuple[Any, Tensor]] = {
    "dict": ({"x": X}, X),
    "mapping": (Mapped(x=X, mask=MASK), X * MASK),
    "ordered dict": (collections.OrderedDict(x=X, more=MORE), X + MORE[0] * MORE[1]),
    "nothing": ({"x": X, "more": None, "mask": MASK}, X * MASK),
    "flag": ({"x": X, "twice": True}, 2 * X),
    "dict in a dict": ({"x": {"left": X, "right": MORE[0]}}, X + MORE[0]),
    "tuple": ((X, MORE), X + MORE[0] * MORE[1]),
    "list": ([X, [MORE[0], MORE[1]], MASK], (X + MORE[0] * MORE[1]) * MASK),
    "tuple with nothing": ((X, None, MASK), X * MASK),
    "history": ({"x": X.clone().requires_grad_()}, X),
}


@pytest.mark.parametrize("held", ["held", "loader", "streamed"])
@pytest.mark.parametrize("name", NESTED)
def test_inputs_may_be_nested(name: str, held: str) -> None:
    inputs, total = NESTED[name]
    model = Several()
    data: Any = (inputs, Y)
    if held != "held":
        data = [(cut_nested(inputs, 0, 5), Y[:5]), (cut_nested(inputs, 5, N), Y[5:])]
    budget = TIGHT if held == "streamed" else 2**30
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, memory_budget=budget)
    theta = risk.parameters()
    assert_close(risk.losses(theta), losses(total))
    assert_close(risk.gradient(theta), gradients(total).mean(0))
    assert_close(risk.per_sample_gradients(theta, torch.tensor([7, 1])), gradients(total)[[7, 1]])


def cut_nested(tree: Any, start: int, stop: int) -> Any:
    if isinstance(tree, (dict, collections.UserDict)):
        return {name: cut_nested(value, start, stop) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(cut_nested(value, start, stop) for value in tree)
    return tree[start:stop] if isinstance(tree, Tensor) else tree


def test_a_name_among_the_inputs_is_handed_on() -> None:
    risk = EmpiricalRisk(Several(), nn.CrossEntropyLoss(), ({"x": X, "mode": "minus"}, Y))
    expected = F.cross_entropy(-MODEL(X), Y, reduction="none")
    assert_close(risk.losses(risk.parameters()), expected.detach())


def test_targets_may_be_nested_or_none() -> None:
    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return F.cross_entropy(outputs, targets["class"], reduction="none") * targets["weight"]

    weight = MASK[:, 0]
    risk = EmpiricalRisk(MODEL, loss, (X, {"class": Y, "weight": weight}))
    assert_close(risk.losses(risk.parameters()), losses() * weight)
    alone = EmpiricalRisk(MODEL, lambda out, nothing: out.square().sum(1), (X, None))
    assert_close(alone.losses(alone.parameters()), MODEL(X).square().sum(1).detach())
