"""Samples of which this process holds a part, and the other ranks of a process group the rest."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xxhash
from scipy.stats import binom
from torch import Tensor

from noisescape.distributed import Shard
from noisescape.errors import InvalidValueError
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.samples import Batch, StreamedSamples, TensorSamples, digest, form_of, in_order

COMPARED_SAMPLES = 64
"""Of all ranks, which every rank evaluates: enough that most classes are among them, whose weights may differ."""
SAME_LOSS = 1e-3
"""Relative difference of two losses that are the same: other hardware rounds otherwise."""
BY_CHANCE = 2e-3
"""Equal samples that lie with other ranks with a smaller probability than this were not put there by chance."""


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

    @classmethod
    def of(cls, own: TensorSamples | StreamedSamples, shard: Shard) -> ShardedSamples:
        """With the counts of all ranks."""
        return cls(own, shard, tuple(shard.objects("how many samples each has", own.count)))

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
        mine = [(places, group.map(Tensor.cpu)) for places, group in self.chosen(indices)]
        for own in self.shard.objects("chosen samples", mine):
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
        return b"".join(self.shard.objects("checksums of samples", self.own.sample_digests()))

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

    def check_same(self, theta: Tensor, *others: Tensor) -> None:
        """Refuse a θ, or directions, weights or indices, that are not the same on every rank.

        Every call looks: whether to look must not depend on what one rank alone knows.

        Raises:
            ValueError: they are not.
        """
        differing = self.shard.differing(theta, *others)
        if 0 in differing:
            raise InvalidValueError(
                "θ is not the same on every rank: build it from the same seed, or broadcast it, "
                "torch.distributed.broadcast(theta, src=0)"
            )
        if differing:
            raise InvalidValueError(
                "directions, weights or indices are not the same on every rank: draw them from the same seed on "
                "every rank, or broadcast them"
            )

    def merged_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over all samples, from those over this rank's."""
        whole = self.total(mean * (self.own.count / self.count))
        # the deviations of each rank's samples from their own mean, then those of the means
        share = (variance + (mean - whole).square()) * (self.own.count / self.count)
        return whole, self.total(share)

    def failing_together(self, what: str) -> AbstractContextManager[None]:
        """If the block fails on one rank, it fails on all."""
        return self.shard.failing_together(what)

    def on_every_rank(self, holds: bool) -> bool:
        """Whether something holds on every rank."""
        return all(self.shard.objects("whether something holds", holds))

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        return max(self.shard.objects("a largest number", value))

    def in_common(self, found: Sequence[Hashable]) -> set[Hashable]:
        """What every rank found."""
        return set.intersection(*map(set, self.shard.objects("what each found", list(found))))

    def shared_generator(self, generator: torch.Generator | None, device: torch.device) -> torch.Generator:
        """One that draws the same numbers on every rank; where none is given, as rank 0's own would have it."""
        if generator is None:
            seed = self.shard.objects("a seed", int(torch.randint(2**62, ())))[0]
            return torch.Generator(device).manual_seed(seed)
        if self.shard.differing(generator.get_state()):
            raise InvalidValueError("the generator is not in the same state on every rank: seed it alike, once")
        return generator

    def own_generator(self, generator: torch.Generator | None, device: torch.device) -> torch.Generator:
        """One that draws other numbers on every rank, for what belongs to its own samples."""
        shared = self.shared_generator(generator, device)
        drawn = int(torch.randint(2**62, (), generator=shared, device=shared.device))
        seed = xxhash.xxh3_64_intdigest(f"{drawn} {self.shard.rank}".encode()) >> 2
        return torch.Generator(device).manual_seed(seed)


def check_shards(samples: ShardedSamples, function: ModelLoss, theta: Tensor, settings: Mapping[str, Any]) -> None:
    """Refuse ranks that do not hold parts of one risk.

    Args:
        samples: the data.
        function: the model and loss.
        theta: its parameters, (D,).
        settings: what else must be equal, by name.

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
        "what each is made of",
        {
            "number of parameters": len(theta),
            "dtype": str(theta.dtype),
            "model and frozen tensors": function.fingerprint(),
            "need of a graph": function.needs_graph,
            "need of other kernels": function.kernels is not None,
            "parameters": digest(theta),
            **settings,
        },
    )
    for what, value in found[0].items():
        differing = [rank for rank, each in enumerate(found) if each[what] != value]
        if differing:
            mend = (
                "build the same model on every rank, with the same seed, or broadcast its parameters, "
                "torch.distributed.broadcast(parameter, src=0)"
            )
            if what in settings:
                mend = f"give every rank the same {what}"
            raise InvalidValueError(f"the {what} of rank {differing[0]} and of rank 0 differ: {mend}")
    _check_parts(samples)


def check_same_losses(samples: ShardedSamples, function: ModelLoss, theta: Tensor, tried: Batch) -> None:
    """Refuse losses or models that differ in what no checksum sees: a loss's weights, a model's plain attributes.

    Every rank evaluates some samples of each.

    Raises:
        ValueError: their losses differ.
    """
    shard = samples.shard
    few = tried.head(max(1, COMPARED_SAMPLES // shard.ranks)).map(Tensor.cpu)
    shown = [batch.map(lambda leaf: leaf.to(theta.device)) for batch in shard.objects("samples to compare", few)]
    with shard.failing_together("evaluate the samples of other ranks"):
        own = torch.cat([function.values(theta, batch) for batch in shown]).double().cpu()
    atol = SAME_LOSS * float(own.abs().nan_to_num(0, 0).max())
    for rank, theirs in enumerate(shard.objects("their losses", own)):
        unlike = ~torch.isclose(theirs, own, rtol=SAME_LOSS, atol=atol, equal_nan=True)
        if bool(unlike.any()):
            one, other = float(theirs[unlike][0]), float(own[unlike][0])
            raise InvalidValueError(
                f"a sample has loss {one:.6g} on rank {rank}, and {other:.6g} on rank {shard.rank}: give every "
                "rank the same loss, with the same weights, and a model with the same settings"
            )


def _check_parts(samples: ShardedSamples) -> None:
    """Refuse parts that share samples, beyond those that the data holds twice.

    Equal samples of one data set fall to ranks by chance: each further copy to the rank of the first with
    probability 1/R. Where far more are with other ranks, the parts overlap.
    """
    shard = samples.shard
    held = [np.frombuffer(own, dtype=np.uint64) for own in shard.objects("checksums", samples.own.sample_digests())]
    for rank, own in enumerate(held):
        same = next((other for other in range(rank) if len(own) > 1 and np.array_equal(held[other], own)), None)
        if same is not None:
            raise InvalidValueError(
                f"ranks {same} and {rank} hold the same {len(own)} samples, which would count twice: give each "
                "rank its own, EmpiricalRisk(model, loss, shard.part(data), shard=shard)"
            )
    copies = len(np.concatenate(held)) - len(np.unique(np.concatenate(held)))
    within = sum(len(own) - len(np.unique(own)) for own in held)
    if copies and binom.cdf(within, copies, 1 / shard.ranks) < BY_CHANCE:
        raise InvalidValueError(
            f"{copies - within} samples are with more than one rank, and would count twice; others may be with "
            "none. Order the data alike on every rank before it is parted (shuffle with a fixed seed), and part it "
            "by shard.part(data)"
        )


Samples = TensorSamples | StreamedSamples | ShardedSamples
"""All that a risk can be of."""
