"""The samples that branches of one checkpoint train on: any of them, in any order, again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk.samples import TensorSamples, as_pair, digest
from noisescape.risk.trees import Tree

TOLD_APART_BY = 16
"""Samples of a data set, evenly spaced, whose checksum stands for it."""


class MappedSamples:
    """Samples of a map-style data set, read when they are wanted, so that what it draws at random is drawn anew."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate
        self.count = len(dataset)

    def take(self, indices: Tensor) -> tuple[Tree, Tree]:
        """Inputs and targets of the samples at ``indices``, (n,), stacked by the collate function."""
        return as_pair(self.collate([self.dataset[index] for index in indices.tolist()]))

    def digest(self) -> str:
        """A checksum of a few samples, and how many there are."""
        some = torch.linspace(0, self.count - 1, min(TOLD_APART_BY, self.count)).long()
        return f"{self.count} samples, {digest(self.take(some))}"


BranchSamples = TensorSamples | MappedSamples
"""N samples, ``count``, that ``take(indices)`` gives by their positions; ``digest()`` tells them from others."""


def branch_samples(data: Any) -> BranchSamples:
    """The samples in ``data``: a pair of tensors (or trees of such), a map-style ``Dataset``, or a loader over one.

    Raises:
        TypeError: data of which no sample can be taken by its position.
        ValueError: there are none.
    """
    if isinstance(data, DataLoader):
        _refuse_streams(data.dataset)
        found: BranchSamples = MappedSamples(data.dataset, data.collate_fn)
    elif isinstance(data, tuple):
        found = TensorSamples(*as_pair(data))
    else:
        _refuse_streams(data)
        found = MappedSamples(data, default_collate)
    if found.count < 1:
        raise InvalidValueError("the data holds no samples")
    return found


def _refuse_streams(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    ):
        raise InvalidTypeError(
            f"branches take their samples in orders of their own, which {type(dataset).__name__} does not "
            "give; pass (inputs, targets) as tensors, a data set with __getitem__ and __len__, or a "
            "DataLoader over one"
        )


def sample_order(count: int, samples: int, generator: torch.Generator) -> Tensor:
    """Positions of so many samples, (samples,): epochs, each in an order of its own, one after the other."""
    epochs = -(-samples // count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])[:samples]


def held_by(samples: object) -> list[object]:
    """What a data set holds: generators among it are put back after each branch."""
    return list(getattr(samples.dataset, "__dict__", {}).values()) if isinstance(samples, MappedSamples) else []
