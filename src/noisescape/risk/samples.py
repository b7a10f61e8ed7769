"""Access to the samples of an empirical risk: in memory, or streamed batch by batch in a fixed order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_structure
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler
from torch.utils.data.sampler import SubsetRandomSampler, WeightedRandomSampler

from noisescape.errors import DataChangedError, InvalidTypeError, InvalidValueError
from noisescape.risk.trees import Tree, map_tensors, plain, tensors_of

POOLED_BATCHES = 8
POOLED_SAMPLES = 64
"""Of so many batches of each shape, at most so many samples are kept to try the model on."""
RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


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
    """All samples in memory, of one shape."""

    def __init__(self, inputs: Tree, targets: Tree) -> None:
        self.inputs = inputs
        self.targets = targets
        self.count = _common_length((inputs, targets))
        self._watched: list[tuple[Tensor, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy's tensors are its own."""
        return {**self.__dict__, "_watched": []}

    def watched(self) -> TensorSamples:
        """Itself, from now on refused once its tensors, which are the caller's, are changed in place."""
        self._watched = [(leaf, leaf._version) for leaf in _leaves(self) if not leaf.is_inference()]
        return self

    def _check_unchanged(self) -> None:
        for leaf, version in self._watched:
            if leaf._version != version:
                raise DataChangedError(
                    f"a data tensor of shape {tuple(leaf.shape)} has been changed in place since the risk was "
                    "built; what was decided on the old values need not hold: build the risk anew, or on copies, "
                    "(inputs.clone(), targets.clone())"
                )

    def batches(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most ``size`` samples."""
        for start in range(0, self.count, size):
            yield self.between(start, min(start + size, self.count))

    def between(self, start: int, stop: int) -> Batch:
        """Samples start .. stop − 1."""
        self._check_unchanged()
        if start == 0 and stop == self.count:
            return Batch(self.inputs, self.targets, 0, self.count)
        window = _slicer(start, stop)
        return Batch(map_tensors(window, self.inputs), map_tensors(window, self.targets), start, stop - start)

    def take(self, indices: Tensor) -> tuple[Tree, Tree]:
        """The samples at ``indices``, of any shape, which becomes the leading shape of every tensor."""
        self._check_unchanged()

        def select(tensor: Tensor) -> Tensor:
            return tensor[indices.to(tensor.device)]

        return map_tensors(select, self.inputs), map_tensors(select, self.targets)

    def chosen(self, indices: Tensor) -> Iterator[tuple[Tensor, TensorSamples]]:
        """The samples at ``indices``, (n,), in groups of one shape, each with its positions among the indices."""
        yield torch.arange(len(indices)), TensorSamples(*self.take(indices))

    def map(self, change: Callable[[Tensor], Tensor]) -> TensorSamples:
        """The same samples with ``change`` applied to every tensor."""
        return TensorSamples(map_tensors(change, self.inputs), map_tensors(change, self.targets))

    def digest(self) -> str:
        """A checksum of every sample."""
        return digest((self.inputs, self.targets))


class StreamedSamples:
    """Batches from a re-iterable: a ``DataLoader``, say, too large to hold, or batches of unlike shapes.

    Each pass reads the source anew. Every pass must bring the same samples in the same order, since weights and
    indices refer to positions: each batch is held against its checksum on the first pass.

    Args:
        source: of batches.
        sizes, digests: how many samples each batch has, and its checksum; None where nothing can have changed.
        candidates: some samples of each shape, kept to try the model on.
        change: what is done to each tensor after reading.
    """

    def __init__(
        self,
        source: Iterable[Any],
        sizes: Sequence[int],
        digests: Sequence[str] | None,
        candidates: Sequence[TensorSamples],
        change: Callable[[Tensor], Tensor],
    ) -> None:
        self.source = source
        self.sizes = sizes
        self.count = sum(sizes)
        self.digests = digests
        self.candidates = candidates
        self.change = change

    def batches(self, size: int) -> Iterator[Batch]:
        """The source's batches, cut where they exceed ``size`` samples.

        Raises:
            DataChangedError: a batch is not what it was on the first pass.
        """
        start = 0
        number = -1
        for number, raw in enumerate(_fresh(self.source)):
            pair = _pair(raw)
            if self.digests is not None and self.digests[number : number + 1] != [digest(pair)]:
                _changed(number, start)
            held = TensorSamples(map_tensors(self.change, pair[0]), map_tensors(self.change, pair[1]))
            for part in held.batches(size):
                yield Batch(part.inputs, part.targets, start + part.start, part.size)
            start += held.count
        if number + 1 != len(self.sizes):
            raise DataChangedError(
                f"the data gave {self.count} samples on its first pass and {start} on a later one; every pass must "
                "bring the same samples in the same order. Let __iter__ start afresh, or pass the batches as a list"
            )

    def chosen(self, indices: Tensor) -> Iterator[tuple[Tensor, TensorSamples]]:
        """The samples at ``indices``, (n,), in groups of one shape, each with its positions among the indices.

        One pass over the source.
        """
        wanted = indices.cpu()
        groups: dict[Any, list[tuple[Tensor, TensorSamples]]] = {}
        for batch in self.batches(max(self.sizes)):
            places = ((wanted >= batch.start) & (wanted < batch.start + batch.size)).nonzero()[:, 0]
            if len(places):
                found = TensorSamples(
                    *TensorSamples(batch.inputs, batch.targets).take(wanted[places] - batch.start)
                )
                groups.setdefault(_form(found), []).append((places, found))
        for group in groups.values():
            yield torch.cat([places for places, _ in group]), _joined([found for _, found in group])

    def unverified(self) -> StreamedSamples:
        """The same stream, of which no checksums are taken."""
        return StreamedSamples(self.source, self.sizes, None, self.candidates, self.change)

    def map(self, change: Callable[[Tensor], Tensor]) -> StreamedSamples:
        """The same stream with ``change`` applied to every tensor."""
        before = self.change
        candidates = [pool.map(change) for pool in self.candidates]
        return StreamedSamples(
            self.source, self.sizes, self.digests, candidates, lambda tensor: change(before(tensor))
        )

    def digest(self) -> str:
        """A checksum of every sample."""
        return xxhash.xxh3_64_hexdigest("".join(self.digests or ()).encode())


Samples = TensorSamples | StreamedSamples


def readings(data: Any, *, device: torch.device, memory_budget: int) -> list[Samples]:
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
        found: list[Samples] = [held]
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
        order = getattr(data.batch_sampler, "sampler", data.sampler)
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
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return [DataLoader(data, batch_size=256, shuffle=False)]
    if isinstance(data, Iterable):
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


def _may_be(pairs: Sequence[Any]) -> tuple[bool, bool]:
    """Whether a list's entries may be batches, and whether they may be single samples.

    Raises:
        ValueError: they are neither.
    """
    batches = samples = True
    forms = set()
    for entry in pairs:
        _pair(entry)
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


def _read(source: Iterable[Any], device: torch.device, memory_budget: int) -> Samples:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    kept: list[TensorSamples] | None = []
    sizes, digests = [], []
    held_bytes = 0
    candidates: dict[Any, list[TensorSamples]] = {}
    for number, raw in enumerate(_fresh(source)):
        pair = _pair(raw)
        digests.append(digest(pair))
        samples = TensorSamples(map_tensors(move, pair[0]), map_tensors(move, pair[1]))
        sizes.append(samples.count)
        held_bytes += sum(leaf.numel() * leaf.element_size() for leaf in _leaves(samples))
        if held_bytes > memory_budget // 2:
            kept = None
        if kept is not None:
            kept.append(samples)
        pools = candidates.setdefault(_form(samples), [])
        if not pools or (number & (number - 1) == 0 and len(pools) < POOLED_BATCHES):  # batch 1, 2, 4, 8, …
            pools.append(TensorSamples(*samples.take(torch.arange(min(POOLED_SAMPLES, samples.count)))))
    if not sum(sizes):
        return TensorSamples(torch.empty(0), torch.empty(0))
    if kept is None:
        first = next(_fresh(source), None)  # an augmenting data set shows here, before any work
        if first is None or digest(_pair(first)) != digests[0]:
            _changed(0, 0)
        return StreamedSamples(source, sizes, digests, [_joined(pools) for pools in candidates.values()], move)
    if len(candidates) > 1:
        batches = [(part.inputs, part.targets) for part in kept]
        pools_of_forms = [_joined(pools) for pools in candidates.values()]
        return StreamedSamples(batches, sizes, [digest(pair) for pair in batches], pools_of_forms, lambda t: t)
    return _joined(kept)


def _fresh(source: Iterable[Any]) -> Iterator[Any]:
    """A new pass. A ``DataLoader`` draws a seed for its workers on each, which would move the user's generator."""
    state = torch.get_rng_state()
    own = source.generator if isinstance(source, DataLoader) else None
    of_own = own.get_state() if own is not None else None
    try:
        batches = iter(source)
    finally:
        torch.set_rng_state(state)
        if own is not None and of_own is not None:
            own.set_state(of_own)
    try:
        yield from batches
    except RuntimeError as error:
        if "stack expects each tensor to be equal size" not in str(error):
            raise
        raise InvalidValueError(
            "samples of unlike shapes cannot be stacked to a batch; pad them in the loader's collate_fn, or take "
            "each alone: DataLoader(data, batch_size=1)"
        ) from error


def _pair(batch: Any) -> tuple[Tree, Tree]:
    """A batch as (inputs, targets) of tensors."""
    if isinstance(batch, Mapping):
        raise InvalidValueError(
            f"each batch must be a pair (inputs, targets), not {type(batch).__name__} of "
            f"{', '.join(map(str, batch))}; split it in the loader: collate_fn=lambda rows: (inputs, targets), "
            "with inputs the dict less its labels"
        )
    if isinstance(batch, PackedSequence) or not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise InvalidValueError(
            f"each batch must be a pair (inputs, targets), not {type(batch).__name__}"
            + (f" of length {len(batch)}" if isinstance(batch, Sized) else "")
            + "; several inputs go together: ((first, second), targets), by the loader's collate_fn, and what is "
            "to be reconstructed is its own target: (inputs, inputs)"
        )
    return plain(batch[0], arrays=True), plain(batch[1], arrays=True)


def _changed(number: int, start: int) -> NoReturn:
    raise DataChangedError(
        f"batch {number} of the data (from sample {start}) is not what it was on the first pass. Estimates take "
        "several passes, and samples are known by their positions: take random augmentation out of the data set, "
        "shuffle once with a fixed seed, or pass one draw of it as tensors"
    )


def digest(tree: Tree) -> str:
    """A checksum of all tensors of a tree, their shapes and dtypes, and its constants."""
    state = xxhash.xxh3_64()
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            state.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
            plain_bits = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous()
            state.update(plain_bits.reshape(-1).view(torch.uint8).numpy().data)
        else:
            state.update(repr(leaf).encode())
    return state.hexdigest()


def _form(samples: TensorSamples) -> Any:
    """What batches that can be joined have in common."""
    both = (samples.inputs, samples.targets)
    constants = tuple(leaf for leaf in tree_leaves(both) if not isinstance(leaf, Tensor))
    return str(tree_structure(both)), tuple((t.shape[1:], t.dtype) for t in tensors_of(both)), constants


def _joined(parts: Sequence[TensorSamples]) -> TensorSamples:
    """Parts of one form, one after the other."""
    if len(parts) == 1:
        return parts[0]

    def join(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors)

    return TensorSamples(
        map_tensors(join, *[part.inputs for part in parts]), map_tensors(join, *[part.targets for part in parts])
    )


def _check_tensors(samples: TensorSamples, device: torch.device) -> None:
    for leaf in _leaves(samples):
        if leaf.device != device:
            raise InvalidValueError(
                f"mixed devices: the parameters are on {device}, a data tensor of shape "
                f"{tuple(leaf.shape)} is on {leaf.device}; move one with .to('{device}')"
            )


def _leaves(samples: TensorSamples) -> list[Tensor]:
    return tensors_of((samples.inputs, samples.targets))


def _common_length(tree: Tree) -> int:
    leaves = tensors_of(tree)
    if any(leaf.ndim == 0 for leaf in leaves):
        raise InvalidValueError("a data tensor has no sample dimension: every tensor needs samples along its first")
    lengths = sorted({leaf.shape[0] for leaf in leaves})
    if len(lengths) != 1:
        raise InvalidValueError(
            f"inputs and targets disagree on the number of samples: first dimensions are {lengths}"
            + "; a list or tuple of tensors is several inputs of the model: torch.stack single samples to one"
            * any(isinstance(part, (list, tuple)) for part in tree)
        )
    return lengths[0]


def _slicer(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[start:stop]
