"""The samples of an empirical risk: in memory, or streamed batch by batch in a fixed order."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
import xxhash
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_structure
from torch.utils.data import DataLoader

from noisescape.errors import DataChangedError, InvalidValueError
from noisescape.risk.trees import Tree, map_tensors, plain, tensors_of


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

    def between(self, start: int, stop: int) -> Batch:
        """Its samples start .. stop − 1, or as many as there are, as a batch of their own."""
        return TensorSamples(self.inputs, self.targets).between(start, min(stop, self.size))

    def head(self, count: int) -> Batch:
        """Its first samples."""
        return self.between(0, count)

    def singles(self) -> Iterator[Batch]:
        """Each sample as a batch."""
        return TensorSamples(self.inputs, self.targets).batches(1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With ``change`` applied to every tensor."""
        return Batch(map_tensors(change, self.inputs), map_tensors(change, self.targets), self.start, self.size)


class OneProcess:
    """What is added up over processes, and collected from them, where one has all samples."""

    @property
    def own(self) -> Self:
        """Those of this process: all."""
        return self

    def sample_digests(self) -> bytes:
        """A checksum of each sample, 8 bytes each."""
        raise NotImplementedError

    def digest(self) -> str:
        """A checksum of every sample."""
        return xxhash.xxh3_64_hexdigest(self.sample_digests())

    def total(self, part: Tensor) -> Tensor:
        """The sum over processes."""
        return part

    def collected(self, rows: Tensor, dim: int = 0) -> Tensor:
        """The rows of all samples, from those of this process's."""
        return rows

    def mine(self, rows: Tensor) -> Tensor:
        """Of rows of all samples, those of this process's."""
        return rows

    def check_same(self, theta: Tensor, *others: Tensor) -> None:
        """Refuse what is not the same with every process."""

    def failing_together(self, _what: str) -> AbstractContextManager[None]:
        """If the block fails with one process, it fails with all."""
        return contextlib.nullcontext()

    def on_every_rank(self, holds: bool) -> bool:
        """Whether something holds with every process."""
        return holds

    def largest(self, value: float) -> float:
        """The largest of all processes' values."""
        return value

    def in_common(self, found: Sequence[Hashable]) -> set[Hashable]:
        """What every process found."""
        return set(found)

    def shared_generator(self, generator: torch.Generator | None, _device: torch.device) -> torch.Generator | None:
        """One that draws the same numbers with every process."""
        return generator

    def own_generator(self, generator: torch.Generator | None, _device: torch.device) -> torch.Generator | None:
        """One that draws other numbers with every process, for what belongs to its own samples."""
        return generator


class TensorSamples(OneProcess):
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
        self._watched = [(leaf, leaf._version) for leaf in leaves_of(self) if not leaf.is_inference()]
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

    def sample_digests(self) -> bytes:
        """A checksum of each sample, 8 bytes each."""
        return sample_digests((self.inputs, self.targets))


class StreamedSamples(OneProcess):
    """Batches from a re-iterable: a ``DataLoader``, say, too large to hold, or batches of unlike shapes.

    Each pass reads the source anew. Every pass must bring the same samples in the same order, since weights and
    indices refer to positions: each batch is held against its checksum on the first pass.

    Args:
        source: of batches.
        sizes, digests: how many samples each batch has, and their checksums; None where nothing can have changed.
        candidates: some samples of each shape, kept to try the model on.
        change: what is done to each tensor after reading.
    """

    def __init__(
        self,
        source: Iterable[Any],
        sizes: Sequence[int],
        digests: Sequence[bytes] | None,
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
        for number, raw in enumerate(fresh_pass(self.source)):
            pair = as_pair(raw)
            if self.digests is not None and self.digests[number : number + 1] != [sample_digests(pair)]:
                refuse_change(number, start)
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
                groups.setdefault(form_of(found), []).append((places, found))
        for group in groups.values():
            yield in_order(group)

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

    def sample_digests(self) -> bytes:
        """A checksum of each sample, 8 bytes each."""
        return b"".join(self.digests or ())


OwnSamples = TensorSamples | StreamedSamples
"""Of one process."""


def fresh_pass(source: Iterable[Any]) -> Iterator[Any]:
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


def as_pair(batch: Any) -> tuple[Tree, Tree]:
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


def refuse_change(number: int, start: int) -> NoReturn:
    """The error of a batch that is not what it was."""
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


def sample_digests(pair: tuple[Tree, Tree]) -> bytes:
    """A checksum of each sample of a batch, 8 bytes each: the same whatever batch a sample comes in."""
    leaves = [leaf.detach().cpu().resolve_conj().resolve_neg().contiguous() for leaf in tensors_of(pair)]
    constants = [leaf for leaf in tree_leaves(pair) if not isinstance(leaf, Tensor)]
    form = f"{tree_structure(pair)}{[(leaf.shape[1:], leaf.dtype) for leaf in leaves]}{constants}"
    lengths = [leaf.shape[0] if leaf.ndim else 1 for leaf in leaves]
    found = [xxhash.xxh3_64_intdigest(form.encode())] * max(lengths, default=0)
    for leaf, length in zip(leaves, lengths, strict=True):
        rows = leaf.reshape(-1).view(torch.uint8).numpy().reshape(length, -1) if length else ()
        found = [xxhash.xxh3_64_intdigest(row.data, seed) for row, seed in zip(rows, found, strict=False)]
    return struct.pack(f"<{len(found)}Q", *found)


def form_of(samples: TensorSamples) -> Any:
    """What batches that can be joined have in common."""
    both = (samples.inputs, samples.targets)
    constants = tuple(leaf for leaf in tree_leaves(both) if not isinstance(leaf, Tensor))
    return str(tree_structure(both)), tuple((t.shape[1:], t.dtype) for t in tensors_of(both)), constants


def joined(parts: Sequence[TensorSamples]) -> TensorSamples:
    """Parts of one form, one after the other."""
    if len(parts) == 1:
        return parts[0]

    def join(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors)

    return TensorSamples(
        map_tensors(join, *[part.inputs for part in parts]), map_tensors(join, *[part.targets for part in parts])
    )


def in_order(parts: Sequence[tuple[Tensor, TensorSamples]]) -> tuple[Tensor, TensorSamples]:
    """Samples of one form that were found at some places of a list of indices, as the list has them."""
    places, order = torch.cat([places for places, _ in parts]).sort()
    return places, TensorSamples(*joined([group for _, group in parts]).take(order))


def leaves_of(samples: TensorSamples) -> list[Tensor]:
    """All tensors of inputs and targets."""
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
