"""Samples of which this process holds a part, and the other ranks of a process group the rest."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xxhash
from torch import Tensor

from noisescape.distributed import Shard
from noisescape.errors import InvalidValueError
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.samples import Batch, StreamedSamples, TensorSamples, digest, form_of, in_order


@dataclass(frozen=True)
class ShardedSamples:
    """N samples, numbered through all ranks: batches hold this rank's, with the numbers they have among all.

    Attributes:
        own: this rank's.
        shard: which rank.
        counts: how many each rank has.
    """

    own: TensorSamples | StreamedSamples
    shard: Shard
    counts: tuple[int, ...]
    _seen: list[Any] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, own: TensorSamples | StreamedSamples, shard: Shard) -> ShardedSamples:
        """With the counts of all ranks."""
        return cls(own, shard, tuple(shard.objects(own.count)))

    @property
    def count(self) -> int:
        """N, of all ranks."""
        return sum(self.counts)

    @property
    def start(self) -> int:
        """The number of this rank's first sample among all."""
        return sum(self.counts[: self.shard.rank])

    @property
    def span(self) -> slice:
        """Where this rank's samples lie among all."""
        return slice(self.start, self.start + self.own.count)

    def batches(self, size: int) -> Iterator[Batch]:
        """This rank's batches of at most ``size`` samples."""
        start = self.start
        for batch in self.own.batches(size):
            yield replace(batch, start=start + batch.start)

    def chosen(self, indices: Tensor) -> Iterator[tuple[Tensor, TensorSamples]]:
        """Of the samples at ``indices``, (n,), this rank's, in groups of one shape, each with its positions."""
        local = indices.cpu() - self.start
        (mine,) = ((local >= 0) & (local < self.own.count)).nonzero(as_tuple=True)
        if len(mine):
            for places, group in self.own.chosen(local[mine].to(indices.device)):
                yield mine[places.cpu()], group

    def brought_together(self, indices: Tensor) -> list[tuple[Tensor, TensorSamples]]:
        """As :meth:`chosen`, of all ranks, on every rank: for a few samples."""
        groups: dict[Any, list[tuple[Tensor, TensorSamples]]] = {}
        for own in self.shard.objects([(places, group.map(Tensor.cpu)) for places, group in self.chosen(indices)]):
            for places, group in own:
                groups.setdefault(form_of(group), []).append((places, group))
        together = [in_order(parts) for parts in groups.values()]
        return [(places, group.map(lambda leaf: leaf.to(indices.device))) for places, group in together]

    def with_own(self, own: TensorSamples | StreamedSamples) -> ShardedSamples:
        """Other samples of this rank's; as many of the other ranks' as before, times what this rank's grew by."""
        times = own.count // self.own.count
        return replace(self, own=own, counts=tuple(times * count for count in self.counts))

    def map(self, change: Callable[[Tensor], Tensor]) -> ShardedSamples:
        """The same samples with ``change`` applied to every tensor."""
        return replace(self, own=self.own.map(change))

    def sample_digests(self) -> bytes:
        """A checksum of each sample of all ranks, 8 bytes each."""
        return b"".join(self.shard.objects(self.own.sample_digests()))

    def digest(self) -> str:
        """A checksum of every sample: the same however they lie with ranks."""
        return xxhash.xxh3_64_hexdigest(self.sample_digests())

    # ------------------------------------------------------------------ over ranks

    def total(self, part: Tensor) -> Tensor:
        """The sum over ranks."""
        return self.shard.total(part)

    def collected(self, rows: Tensor, dim: int = 0) -> Tensor:
        """The rows of all samples, from this rank's."""
        return self.shard.collected(rows, self.counts, dim)

    def mine(self, rows: Tensor) -> Tensor:
        """Of rows of all samples, those of this rank's."""
        return rows[self.span]

    def check_same(self, theta: Tensor) -> None:
        """Refuse a θ that is another one on another rank; one looked at already is not looked at again.

        Raises:
            ValueError: it is.
        """
        version = -1 if theta.is_inference() else theta._version
        last = self._seen[0]() if self._seen else None
        if last is theta and self._seen[1] == version >= 0:
            return
        if not self.shard.same(theta):
            raise InvalidValueError(
                "θ is not the same on every rank: build it from the same seed, or broadcast it, "
                "torch.distributed.broadcast(theta, src=0)"
            )
        self._seen[:] = [weakref.ref(theta), version]

    def merged_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over all samples, from those over this rank's."""
        whole = self.total(mean * (self.own.count / self.count))
        # the deviations of each rank's samples from their own mean, then those of the means
        share = (variance + (mean - whole).square()) * (self.own.count / self.count)
        return whole, self.total(share)

    def on_every_rank(self, holds: bool) -> bool:
        """Whether something holds on every rank."""
        return all(self.shard.objects(holds))

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        return max(self.shard.objects(value))

    def in_common(self, found: Sequence[Hashable]) -> set[Hashable]:
        """What every rank found."""
        return set.intersection(*map(set, self.shard.objects(list(found))))

    def shared_generator(self, generator: torch.Generator | None, device: torch.device) -> torch.Generator:
        """One that draws the same numbers on every rank; where none is given, as rank 0's own would have it."""
        if generator is not None:
            return generator
        seed = self.shard.objects(int(torch.randint(2**62, ())))[0]
        return torch.Generator(device).manual_seed(seed)

    def own_generator(self, generator: torch.Generator | None, device: torch.device) -> torch.Generator:
        """One that draws other numbers on every rank, for what belongs to its own samples."""
        shared = self.shared_generator(generator, device)
        drawn = int(torch.randint(2**62, (), generator=shared, device=shared.device))
        seed = xxhash.xxh3_64_intdigest(f"{drawn} {self.shard.rank}".encode()) >> 2
        return torch.Generator(device).manual_seed(seed)


def check_shards(samples: ShardedSamples, function: ModelLoss, theta: Tensor) -> None:
    """Refuse ranks that do not hold parts of one risk.

    Raises:
        ValueError: other parameters, models, kinds of numbers or settings on some rank; samples that are on two.
    """
    shard = samples.shard
    if theta.device.type != "cuda" and shard.needs_cuda:
        raise InvalidValueError(
            "the process group adds up tensors of GPUs alone (nccl), and the parameters are on the CPU: move the "
            "model to this rank's GPU, or begin the group with backend='gloo'"
        )
    found = shard.objects(
        {
            "number of parameters": len(theta),
            "dtype": str(theta.dtype),
            "model and frozen tensors": function.fingerprint(),
            "need of a graph": function.needs_graph,
            "need of other kernels": function.kernels is not None,
            "parameters": digest(theta),
        }
    )
    for what, value in found[0].items():
        differing = [rank for rank, each in enumerate(found) if each[what] != value]
        if differing:
            raise InvalidValueError(
                f"the {what} of rank {differing[0]} and of rank 0 differ: build the same model on every rank, with "
                "the same seed, or broadcast its parameters, torch.distributed.broadcast(parameter, src=0)"
            )
    holders: dict[str, int] = {}
    for rank, own in enumerate(shard.objects(samples.own.digest())):
        if own in holders:
            raise InvalidValueError(
                f"ranks {holders[own]} and {rank} hold the same {samples.counts[rank]} samples, which would count "
                "twice: give each rank its own, EmpiricalRisk(model, loss, shard.part(data), shard=shard)"
            )
        holders[own] = rank


Samples = TensorSamples | StreamedSamples | ShardedSamples
"""All that a risk can be of."""
