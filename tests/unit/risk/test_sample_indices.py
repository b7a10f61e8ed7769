"""Indices of samples, of data that are held and of data that are streamed: within 0 .. N − 1, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import CASES, Batches, Case
from internals import is_streamed
from noisescape.risk import EmpiricalRisk


def held(case: Case) -> EmpiricalRisk:
    return case.risk()


def streamed(case: Case) -> EmpiricalRisk:
    risk = EmpiricalRisk(case.model(), case.loss, Batches(case, [4, 7]), memory_budget=600)
    assert is_streamed(risk)
    return risk


each_reading = pytest.mark.parametrize("read", [held, streamed])
each_call = pytest.mark.parametrize(
    "call",
    [EmpiricalRisk.per_sample_gradients, EmpiricalRisk.minibatch_gradient],
    ids=["per-sample gradients", "minibatch"],
)
Call = Callable[[EmpiricalRisk, Tensor, Tensor], Tensor]


@each_reading
@each_call
@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0, 99]), IndexError, r"must lie in 0\.\.10"),
        (torch.tensor([0, -1]), IndexError, r"must lie in 0\.\.10"),
        (torch.tensor([], dtype=torch.long), ValueError, "at least one sample is needed"),
        (torch.tensor([0.0, 1.0]), TypeError, "tensor of whole numbers, not torch.float32"),
        (torch.tensor([True, False]), TypeError, "tensor of whole numbers, not torch.bool"),
        ([0, 1], TypeError, "tensor of whole numbers, not list"),
    ],
    ids=["beyond the last", "negative", "none", "floating", "a mask", "a list"],
)
def test_what_names_no_samples_is_refused(
    read: Callable[[Case], EmpiricalRisk], call: Call, indices: Tensor, error: type[Exception], message: str
) -> None:
    case = CASES["mlp cross-entropy"]
    with pytest.raises(error, match=message):
        call(read(case), case.theta, indices)


@each_reading
def test_rows_of_chosen_samples_are_those_of_all(read: Callable[[Case], EmpiricalRisk]) -> None:
    case = CASES["mlp cross-entropy"]
    indices = torch.tensor([10, 0, 5, 5])
    risk = read(case)
    rows = risk.per_sample_gradients(case.theta, indices)
    torch.testing.assert_close(rows, case.risk().per_sample_gradients(case.theta)[indices], rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"indices must have shape \(n,\), not \(2, 2\)"):
        risk.per_sample_gradients(case.theta, indices.view(2, 2))
