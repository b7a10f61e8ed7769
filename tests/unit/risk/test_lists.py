"""Lists of samples and lists of batches are kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from cases import F64
from noisescape.risk import EmpiricalRisk
from sample_data import N, X, Y, linear


def test_a_list_that_may_be_both_is_read_as_batches_with_a_warning() -> None:
    model = nn.Linear(4, 4).to(F64)
    either = [(X[n], 2 * X[n]) for n in range(3)]  # three samples of 4 numbers, or batches of 4 samples
    risk = EmpiricalRisk(model, nn.MSELoss(), either)
    assert risk.sample_count == 3  # a linear layer takes a sample of a batch as well, but only one of four numbers
    pair = [(X[:4], X[4:8]), (X[8:], X[:4])]
    with pytest.warns(
        UserWarning, match=r"may hold batches or single samples; it is read as batches, of 8 samples"
    ):
        assert EmpiricalRisk(nn.Linear(4, 4).to(F64), nn.MSELoss(), pair).sample_count == 8


LISTS: dict[str, tuple[Callable[[], nn.Module], Any, list[Any], int]] = {
    "two batches": (linear, nn.CrossEntropyLoss(), [(X[:6], Y[:6]), (X[6:], Y[6:])], 12),
    "batches of one": (linear, nn.CrossEntropyLoss(), [(X[n : n + 1], Y[n : n + 1]) for n in range(N)], 12),
    "batches of unlike size": (linear, nn.CrossEntropyLoss(), [(X[:5], Y[:5]), (X[5:], Y[5:])], 12),
    "samples with numbers": (linear, nn.CrossEntropyLoss(), [(X[n], int(Y[n])) for n in range(N)], 12),
    "samples with a number each": (linear, nn.CrossEntropyLoss(), [(X[n], Y[n]) for n in range(N)], 12),
    "samples with a vector of one": (
        lambda: nn.Linear(4, 1).to(F64),
        nn.MSELoss(),
        [(X[n], X[n, :1]) for n in range(N)],
        12,
    ),
    "images": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(F64),
        nn.CrossEntropyLoss(),
        [(X[n].view(1, 2, 2), int(Y[n])) for n in range(N)],
        12,
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_samples_are_kept_apart_from_lists_of_batches(name: str) -> None:
    model, loss, pairs, count = LISTS[name]
    assert EmpiricalRisk(model(), loss, pairs).sample_count == count
