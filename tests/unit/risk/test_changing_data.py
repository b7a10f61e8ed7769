"""Data that change after the risk was built are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import F64
from noisescape.errors import DataChangedError
from sample_data import TIGHT, N, Rowwise, X, Y, build, losses


class Augmented(Rowwise):
    """Noise of its own in every draw."""

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        return X[n] + torch.randn(4, dtype=F64), Y[n]


def test_held_augmented_data_are_one_draw() -> None:
    risk = build(Augmented())
    theta = risk.parameters()
    assert torch.equal(risk.losses(theta), risk.losses(theta))
    assert_close(risk.gradient(theta), risk.per_sample_gradients(theta).mean(0))


def test_streamed_augmented_data_are_refused_at_once() -> None:
    with pytest.raises(DataChangedError, match=r"batch 0 .*take random augmentation out of the data set"):
        build(Augmented(), memory_budget=TIGHT)


class Changing:
    """Once ``changed``, a pass brings what ``later`` makes of the data."""

    def __init__(self, later: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.later, self.changed = later, False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.later() if self.changed else (X, Y)
        yield from zip(x.split(4), y.split(4), strict=True)


def _one_value() -> tuple[Tensor, Tensor]:
    x = X.clone()
    x[-1, -1] += 1e-12
    return x, Y


MEND = r"take random augmentation out of the data set, shuffle once with a fixed seed, or pass one draw of it"
CHANGED: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
    "a value late in the stream": (_one_value, rf"batch 2 of the data \(from sample 8\).*{MEND}"),
    "a label": (lambda: (X, Y.flip(0)), rf"batch 0 .*{MEND}"),
    "the order": (lambda: (X.roll(4, 0), Y.roll(4, 0)), rf"batch 0 .*{MEND}"),
    "precision": (lambda: (X.float(), Y), rf"batch 0 .*{MEND}"),
    "more": (lambda: (torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]])), rf"batch 3 .*{MEND}"),
    "fewer": (lambda: (X[:8], Y[:8]), r"12 samples on its first pass and 8 on a later one.*__iter__ start afresh"),
    "none": (lambda: (X[:0], Y[:0]), r"batch 0|12 samples on its first pass and 0 on a later"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_stream_that_changes_is_refused(name: str) -> None:
    later, message = CHANGED[name]
    data = Changing(later)
    risk = build(data, memory_budget=TIGHT)
    risk.loss(risk.parameters())
    data.changed = True
    with pytest.raises(DataChangedError, match=message):
        risk.gradient(risk.parameters())


class Shuffling:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for some in torch.randperm(N).split(4):
            yield X[some], Y[some]


def test_an_iterable_that_shuffles_is_refused_streamed_and_read_once_if_held() -> None:
    with pytest.raises(DataChangedError, match=MEND):
        build(Shuffling(), memory_budget=TIGHT)
    risk = build(Shuffling())
    theta = risk.parameters()
    assert torch.equal(risk.losses(theta), risk.losses(theta))
    assert_close(risk.losses(theta).sort().values, losses().sort().values)


@pytest.mark.parametrize("which", ["inputs", "targets"])
def test_tensors_changed_in_place_are_refused(which: str) -> None:
    x, y = X.clone(), Y.clone()
    risk = build((x, y))
    theta = risk.parameters()
    risk.loss(theta)
    if which == "inputs":
        x.mul_(2)
    else:
        y[0] = (y[0] + 1) % 3
    for use in (risk.loss, risk.gradient, risk.per_sample_gradients):
        with pytest.raises(
            DataChangedError, match=r"changed in place since the risk was built.*build the risk anew"
        ):
            use(theta)
    with pytest.raises(DataChangedError):
        risk.minibatch_gradient(theta, torch.tensor([1]))


def test_batches_that_are_held_are_copies() -> None:
    x = X.clone()
    risk = build([(x[:5], Y[:5]), (x[5:], Y[5:])])
    x.zero_()
    assert_close(risk.losses(risk.parameters()), losses())
