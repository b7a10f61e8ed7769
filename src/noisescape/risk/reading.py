"""What a user passes as data, read as samples: tensors, data sets, loaders, re-iterables of batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler
from torch.utils.data.sampler import SubsetRandomSampler, WeightedRandomSampler

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk.samples import (
    OwnSamples,
    StreamedSamples,
    TensorSamples,
    as_pair,
    form_of,
    fresh_pass,
    joined,
    leaves_of,
    refuse_change,
    sample_digests,
)
from noisescape.risk.trees import map_tensors, plain
from noisescape.risk.trial import TRIAL

RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def readings(data: Any, *, device: torch.device, memory_budget: int) -> list[OwnSamples]:
    """The samples of ``data``; in two ways where a list of pairs may hold batches as well as single samples.

    A tensor pair must already be on ``device``. Data sets and loaders yield CPU tensors by nature: their batches
    are moved there, and kept if all of them fit in half of ``memory_budget`` bytes.

    Raises:
        TypeError: no tensor pair, data set or re-iterable of pairs.
        ValueError: empty, of unequal lengths, on another device, shuffled, or readable only once.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and not _holds_pairs(data):
        held = TensorSamples(plain(data[0], arrays=False), plain(data[1], arrays=False))
        _check_tensors(held, device)
        found: list[OwnSamples] = [held]
    else:
        found = [_read(source, device, memory_budget) for source in _sources(data)]
    if any(samples.count == 0 for samples in found):
        raise InvalidValueError("the data set is empty: an empirical risk is a mean over at least one sample")
    return [each.watched() if isinstance(each, TensorSamples) else each for each in found]


def _holds_pairs(data: Sequence[Any]) -> bool:
    """Whether a sequence of length two is a list of two (inputs, targets) pairs, rather than one pair."""
    return isinstance(data, list) and all(isinstance(part, (tuple, list)) and len(part) == 2 for part in data)


def _sources(data: Any) -> list[Iterable[Any]]:
    if isinstance(data, DataLoader):
        order = _innermost(data)
        if isinstance(order, DistributedSampler):
            _refuse_repeats(order)
        # what other samplers do shows on later passes
        if not isinstance(data.dataset, IterableDataset) and isinstance(order, RANDOM):
            raise InvalidValueError(
                "the DataLoader shuffles: a risk needs the same order on every pass; build it with shuffle=False"
            )
        return [data]
    if isinstance(data, Mapping):
        raise InvalidTypeError(
            f"data must be a pair (inputs, targets), not {type(data).__name__} of {', '.join(map(str, data))}; "
            "pass (inputs, targets), with inputs the dict less its labels"
        )
    if isinstance(data, (list, tuple)) and len(data) > 0:
        as_batches, as_samples = _may_be(data)
        found: list[Iterable[Any]] = [data] if as_batches else []
        if as_samples:
            found.append(DataLoader(data, batch_size=256, shuffle=False))  # type: ignore[arg-type]
        return found
    text = isinstance(data, (str, bytes))  # a path, perhaps: characters are no samples
    if isinstance(data, Dataset) or (not text and hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return [DataLoader(data, batch_size=256, shuffle=False)]
    if isinstance(data, Iterable) and not text:
        if iter(data) is data:
            raise InvalidValueError(
                "the data is a one-pass iterator; estimates need several passes. Pass a list of batches, a "
                "DataLoader, or any object whose __iter__ starts afresh"
            )
        return [data]
    raise InvalidTypeError(
        "data must be a pair (inputs, targets) of tensors, a map-style data set or a re-iterable of "
        f"(inputs, targets) batches, not {type(data).__name__}"
        + ("; make a generator function the __iter__ of a class" if inspect.isroutine(data) else "")
    )


def _refuse_repeats(order: DistributedSampler[Any]) -> None:
    repeated = order.total_size - len(order.dataset)  # type: ignore[arg-type]
    if repeated:
        what = f"repeats {repeated}" if repeated > 0 else f"leaves out {-repeated}"
        raise InvalidValueError(
            f"the DistributedSampler {what} samples, so that all ranks get as many: give each rank its own part of "
            "the data set, EmpiricalRisk(model, loss, shard.part(dataset), shard=shard)"
        )


def _innermost(loader: DataLoader[Any]) -> Any:
    """The sampler that decides, under those that wrap it, as trainers' do."""
    order: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    while (inner := getattr(order, "sampler", None) or getattr(order, "batch_sampler", None)) is not None:
        order = inner
    return order


def _may_be(pairs: Sequence[Any]) -> tuple[bool, bool]:
    """Whether a list's entries may be batches, and whether they may be single samples.

    Raises:
        ValueError: they are neither.
    """
    batches = samples = True
    forms = set()
    for entry in pairs:
        as_pair(entry)
        leaves = [leaf for part in entry for leaf in tree_leaves(part)]
        tensors = [leaf for leaf in leaves if isinstance(leaf, (Tensor, np.ndarray))]
        targets = tree_leaves(entry[1])
        lengths = {leaf.shape[0] if leaf.ndim else None for leaf in tensors}
        if len(lengths) != 1 or None in lengths or not all(isinstance(t, (Tensor, np.ndarray)) for t in targets):
            batches = False
        forms.add(tuple(tuple(leaf.shape) for leaf in tensors))
    if len(forms) != 1:
        samples = False
    if not batches and not samples:
        raise InvalidValueError(
            f"the entries of the list of {len(pairs)} pairs are neither batches, of tensors with a common first "
            "dimension, nor samples of one shape; pad the samples to one shape, or make each a batch of its own: "
            "(inputs[None], target[None])"
        )
    return batches, samples


def _read(source: Iterable[Any], device: torch.device, memory_budget: int) -> OwnSamples:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    kept: list[TensorSamples] | None = []
    sizes, digests = [], []
    held_bytes = 0
    candidates: dict[Any, list[TensorSamples]] = {}
    for number, raw in enumerate(fresh_pass(source)):
        pair = as_pair(raw)
        digests.append(sample_digests(pair))
        samples = TensorSamples(map_tensors(move, pair[0]), map_tensors(move, pair[1]))
        sizes.append(samples.count)
        held_bytes += sum(leaf.numel() * leaf.element_size() for leaf in leaves_of(samples))
        if held_bytes > memory_budget // 2:
            kept = None
        if kept is not None:
            kept.append(samples)
        pools = candidates.setdefault(form_of(samples), [])
        if not pools or (number & (number - 1) == 0 and len(pools) < TRIAL.batches):  # batch 1, 2, 4, 8, …
            pools.append(TensorSamples(*samples.take(torch.arange(min(TRIAL.samples, samples.count)))))
    if not sum(sizes):
        return TensorSamples(torch.empty(0), torch.empty(0))
    if kept is None:
        first = next(fresh_pass(source), None)  # an augmenting data set shows here, before any work
        if first is None or sample_digests(as_pair(first)) != digests[0]:
            refuse_change(0, 0)
        return StreamedSamples(source, sizes, digests, [joined(pools) for pools in candidates.values()], move)
    if len(candidates) > 1:
        batches = [(part.inputs, part.targets) for part in kept]
        pools_of_forms = [joined(pools) for pools in candidates.values()]
        return StreamedSamples(
            batches, sizes, [sample_digests(pair) for pair in batches], pools_of_forms, lambda t: t
        )
    return joined(kept)


def _check_tensors(samples: TensorSamples, device: torch.device) -> None:
    for leaf in leaves_of(samples):
        if leaf.device != device:
            raise InvalidValueError(
                f"mixed devices: the parameters are on {device}, a data tensor of shape "
                f"{tuple(leaf.shape)} is on {leaf.device}; move one with .to('{device}')"
            )
