"""Access to the samples of an empirical risk: in memory, or streamed batch by batch in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

Tree = Any
"""A tensor, or a tuple, list or dict of tensors, samples along each tensor's first dimension."""


@dataclass(frozen=True)
class Batch:
    """Samples start .. start + size − 1 of the data."""

    inputs: Tree
    targets: Tree
    start: int
    size: int

    @property
    def span(self) -> slice:
        """Where this batch lies among all samples."""
        return slice(self.start, self.start + self.size)


class TensorSamples:
    """All samples in memory."""

    def __init__(self, inputs: Tree, targets: Tree) -> None:
        self.inputs = inputs
        self.targets = targets
        self.count = _common_length((inputs, targets))

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most ``size`` samples."""
        for start in range(0, self.count, size):
            yield self.between(start, min(start + size, self.count))

    def between(self, start: int, stop: int) -> Batch:
        """Samples start .. stop − 1."""
        if start == 0 and stop == self.count:
            return Batch(self.inputs, self.targets, 0, self.count)
        window = _slicer(start, stop)
        return Batch(tree_map(window, self.inputs), tree_map(window, self.targets), start, stop - start)

    def take(self, indices: Tensor) -> tuple[Tree, Tree]:
        """The samples at ``indices``, of any shape, which becomes the leading shape of every tensor."""

        def select(tensor: Tensor) -> Tensor:
            return tensor[indices.to(tensor.device)]

        return tree_map(select, self.inputs), tree_map(select, self.targets)

    def map(self, change: Callable[[Tensor], Tensor]) -> TensorSamples:
        """The same samples with ``change`` applied to every tensor."""
        return TensorSamples(tree_map(change, self.inputs), tree_map(change, self.targets))


class StreamedSamples:
    """Batches from a re-iterable (a ``DataLoader``, say) too large to hold; each pass reads it anew.

    Every pass must bring the same samples in the same order: weights and indices refer to positions.
    """

    def __init__(self, source: Iterable[tuple[Tree, Tree]], count: int, change: Callable[[Tensor], Tensor]) -> None:
        self.source = source
        self.count = count
        self.change = change

    def batches(self, size: int) -> Iterator[Batch]:
        """The source's batches, cut where they exceed ``size`` samples."""
        start = 0
        for inputs, targets in self.source:
            held = TensorSamples(tree_map(self.change, inputs), tree_map(self.change, targets))
            for part in held.batches(size):
                yield Batch(part.inputs, part.targets, start + part.start, part.size)
            start += held.count
        if start != self.count:
            raise ValueError(
                f"the data gave {self.count} samples on its first pass and {start} on a later one; "
                "every pass must bring the same samples in the same order"
            )

    def take(self, indices: Tensor) -> tuple[Tree, Tree]:
        """The samples at ``indices``, gathered in one pass over the source."""
        wanted, inverse = torch.unique(indices.flatten().cpu(), return_inverse=True)
        found = []
        for batch in self.batches(self.count):
            inside = wanted[(wanted >= batch.start) & (wanted < batch.start + batch.size)] - batch.start
            if len(inside):
                found.append(TensorSamples(batch.inputs, batch.targets).take(inside))

        def gather(*parts: Tensor) -> Tensor:
            joined = torch.cat(parts)
            return joined[inverse.to(joined.device)].reshape(*indices.shape, *joined.shape[1:])

        inputs = tree_map(gather, *[part[0] for part in found])
        return inputs, tree_map(gather, *[part[1] for part in found])

    def map(self, change: Callable[[Tensor], Tensor]) -> StreamedSamples:
        """The same stream with ``change`` applied to every tensor."""
        before = self.change
        return StreamedSamples(self.source, self.count, lambda tensor: change(before(tensor)))


Samples = TensorSamples | StreamedSamples


def open_samples(data: Any, *, device: torch.device, memory_budget: int) -> Samples:
    """Samples of a tensor pair, a map-style data set or a re-iterable of (inputs, targets) batches.

    A tensor pair must already be on ``device``. Data sets and loaders yield CPU tensors by nature: their
    batches are moved there, and kept if all of them fit in half of ``memory_budget`` bytes.

    Raises:
        TypeError: none of the three kinds.
        ValueError: empty, of unequal lengths, on another device, shuffled, or readable only once.
    """
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(_is_tree(part) for part in data)
    two_batches = isinstance(data, list) and all(
        isinstance(part, (tuple, list)) and len(part) == 2 for part in data
    )
    if pair and not two_batches:
        held = TensorSamples(*data)
        _check_tensors(held, device)
        samples: Samples = held
    else:
        samples = _read(data, device, memory_budget)
    if samples.count == 0:
        raise ValueError("the data set is empty: an empirical risk is a mean over at least one sample")
    return samples


def _read(data: Any, device: torch.device, memory_budget: int) -> Samples:
    source: Iterable[tuple[Tree, Tree]]
    if isinstance(data, DataLoader):
        order = getattr(data.batch_sampler, "sampler", data.sampler)
        if not isinstance(data.dataset, IterableDataset) and not isinstance(order, SequentialSampler):
            raise ValueError(
                "the DataLoader shuffles: a risk needs the same order on every pass; build it with shuffle=False"
            )
        source = data
    elif isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        source = data if _is_batch_list(data) else DataLoader(data, batch_size=256, shuffle=False)
    elif isinstance(data, Iterable):
        if iter(data) is data:
            raise ValueError(
                "the data is a one-pass iterator; estimates need several passes. Pass a list of batches, a "
                "DataLoader, or any object whose __iter__ starts afresh"
            )
        source = data
    else:
        raise TypeError(
            "data must be a pair (inputs, targets) of tensors, a map-style data set or a re-iterable of "
            f"(inputs, targets) batches, not {type(data).__name__}"
        )

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device) if isinstance(tensor, Tensor) else torch.as_tensor(tensor, device=device)

    kept: list[TensorSamples] | None = []
    count = held_bytes = 0
    for batch in source:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise ValueError(
                f"each batch must be a pair (inputs, targets), not {type(batch).__name__}"
                + (f" of length {len(batch)}" if isinstance(batch, Sized) else "")
            )
        samples = TensorSamples(tree_map(move, batch[0]), tree_map(move, batch[1]))
        count += samples.count
        held_bytes += sum(leaf.numel() * leaf.element_size() for leaf in _leaves(samples))
        if held_bytes > memory_budget // 2:
            kept = None
        if kept is not None:
            kept.append(samples)
    if count == 0:
        return TensorSamples(torch.empty(0), torch.empty(0))
    if kept is None:
        return StreamedSamples(source, count, move)
    return TensorSamples(
        tree_map(lambda *parts: torch.cat(parts), *[part.inputs for part in kept]),
        tree_map(lambda *parts: torch.cat(parts), *[part.targets for part in kept]),
    )


def _is_batch_list(data: Any) -> bool:
    """Whether the elements are (inputs, targets) batches already, rather than single samples."""
    if isinstance(data, Dataset) or len(data) == 0:
        return False
    first = data[0]
    if not (isinstance(first, (tuple, list)) and len(first) == 2):
        return False
    targets = tree_flatten(first[1])[0]
    return all(isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in targets)


def _check_tensors(samples: TensorSamples, device: torch.device) -> None:
    for leaf in _leaves(samples):
        if leaf.device != device:
            raise ValueError(
                f"mixed devices: the parameters are on {device}, a data tensor of shape "
                f"{tuple(leaf.shape)} is on {leaf.device}; move one with .to('{device}')"
            )


def _leaves(samples: TensorSamples) -> list[Tensor]:
    return [leaf for tree in (samples.inputs, samples.targets) for leaf in tree_flatten(tree)[0]]


def _is_tree(part: Any) -> bool:
    leaves = tree_flatten(part)[0]
    return bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)


def _common_length(tree: Tree) -> int:
    leaves = tree_flatten(tree)[0]
    if any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError("a data tensor has no sample dimension: every tensor needs samples along its first")
    lengths = sorted({leaf.shape[0] for leaf in leaves})
    if len(lengths) != 1:
        raise ValueError(f"inputs and targets disagree on the number of samples: first dimensions are {lengths}")
    return lengths[0]


def _slicer(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[start:stop]
