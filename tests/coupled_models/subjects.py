"""What an entry is, and data for it: N = 40 samples, the first two of one class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import classes, normal

N = 40
F32, F64 = torch.float32, torch.float64
Subject = tuple[nn.Module, Callable[[Any, Any], Tensor], tuple[Any, Any]]


@dataclass(frozen=True)
class Entry:
    """A model, a loss and data in a given precision.

    Attributes:
        build: dtype ↦ (model, loss, data).
        hidden: a batch of the first two samples gives what each gives alone.
        random: two evaluations differ.
        runs: batches of any size, of one too, can be evaluated.
        dtypes: that it exists in.
    """

    build: Callable[[torch.dtype], Subject]
    hidden: bool = False
    random: bool = False
    runs: bool = True
    dtypes: tuple[torch.dtype, ...] = (F32, F64)

    def subject(self, dtype: torch.dtype) -> Subject:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return self.build(dtype)


def each(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def vectors(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ten numbers and a class for each sample; the first two samples are of one class."""
    targets = classes(N, of=3, seed=2)
    targets[:2] = 1
    return normal(N, 10, seed=1, dtype=dtype), targets


def pictures(dtype: torch.dtype, side: int = 8) -> tuple[Tensor, Tensor]:
    return normal(N, 3, side, side, seed=4, dtype=dtype), vectors(dtype)[1]


def of(model: Callable[[], nn.Module], loss: Callable[..., Tensor] = each) -> Callable[[torch.dtype], Subject]:
    return lambda dtype: (model().to(dtype), loss, vectors(dtype))


def of_pictures(model: Callable[[], nn.Module]) -> Callable[[torch.dtype], Subject]:
    return lambda dtype: (model().to(dtype), each, pictures(dtype))


class Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class Disturbed(nn.Module):
    """A small classifier with something done to its hidden units, and something to its outputs."""

    def __init__(
        self,
        inside: Callable[[Tensor], Tensor] = lambda hidden: hidden,
        after: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 6), nn.Linear(6, 3)
        self.inside, self.after = inside, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.second(self.inside(torch.tanh(self.first(x)))))


def inside(change: Callable[[Tensor], Tensor]) -> Callable[[torch.dtype], Subject]:
    return of(lambda: Disturbed(change))


def after(change: Callable[[Tensor], Tensor]) -> Callable[[torch.dtype], Subject]:
    return of(lambda: Disturbed(after=change))


def loss_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[torch.dtype], Subject]:
    return of(Disturbed, loss)
