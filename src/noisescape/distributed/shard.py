"""A process among several that each hold some of the samples, as ``torchrun`` starts them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Subset

from noisescape.errors import FailedError, InvalidTypeError, InvalidValueError, LostRankError
from noisescape.scalars import check_whole

if dist.is_available():
    # Its functions hold, as their default, the group there is when they are imported, as forward mode comes to do.
    # Held so, a group is not ended by destroy_process_group, and its threads may abort a program that is over.
    import torch.distributed.nn.functional

WORDS = 2**12
"""Of 8 bytes, in a row of those that a checksum adds up."""
COMPARED = 4
"""Tensors that ranks compare in one exchange, of the same size whatever call they are at."""
ROLL_CALL_SECONDS = 3.0
"""How long those who are left wait for one another before they say who is missing."""


@dataclass(frozen=True)
class Shard:
    """One rank of a process group, which holds a part of the samples.

    Samples are numbered through: those of rank 0 first, then those of rank 1, and so on. Every rank runs the same
    program on its own samples; each sum over samples is added up over all ranks, weighted by how many they hold.

    Attributes:
        rank: this process's number.
        ranks: how many there are.
        group: theirs; None: the default group.

    >>> Shard(rank=1, ranks=3).positions(10)
    range(4, 7)
    """

    rank: int
    ranks: int
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        check_whole("ranks", self.ranks)
        check_whole("rank", self.rank, 0, self.ranks - 1)

    @classmethod
    def of_process_group(cls, group: dist.ProcessGroup | None = None) -> Shard:
        """Of this process in a group that runs; by default the one ``torch.distributed.init_process_group`` began.

        How long a rank waits for another before the run ends is that group's timeout.

        Raises:
            ValueError: no process group has been begun, or this process is not in it.
        """
        if not dist.is_available() or not dist.is_initialized():
            raise InvalidValueError(
                "no process group runs: start the program by torchrun, and call "
                "torch.distributed.init_process_group() in it first"
            )
        rank = dist.get_rank(group)
        if rank < 0:
            raise InvalidValueError("this process is not in the group it was to hold a shard of")
        return cls(rank, dist.get_world_size(group), group)

    # ------------------------------------------------------------------ a rank's part of the data

    def positions(self, count: int) -> range:
        """Which of ``count`` samples are this rank's: consecutive ones, as many on every rank but for one."""
        check_whole("count", count, 0)
        each, more = divmod(count, self.ranks)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))

    def part(self, data: Any) -> Any:
        """This rank's part of data that every rank can read: pairs of tensors, or a map-style data set.

        No sample is on two ranks, as with a ``DistributedSampler``, which repeats some so that all ranks get as
        many.

        Args:
            data: tensors with samples along their first dimension, alone or in tuples, lists and dicts; a list of
                batches or of samples; :class:`~noisescape.Columns`; or anything with ``__len__`` and
                ``__getitem__``. It is the same, in the same order, on every rank: shuffle it with a fixed seed.

        Raises:
            ValueError: fewer samples than ranks.
            TypeError: data that has no numbered samples, such as a stream: let each rank read its own part of it.

        >>> inputs, targets = Shard(rank=0, ranks=2).part((torch.arange(5.0), torch.arange(5)))
        >>> inputs
        tensor([0., 1., 2.])
        """
        if hasattr(data, "part_of"):
            return data.part_of(self)
        if isinstance(data, (Tensor, np.ndarray)):
            mine = self.checked(len(data))
            return data[mine.start : mine.stop]
        if data is None or isinstance(data, (bool, int, float, str)):  # belongs to all samples
            return data
        if isinstance(data, Mapping):
            return {name: self.part(each) for name, each in data.items()}
        if isinstance(data, tuple) or (isinstance(data, list) and data and all(map(torch.is_tensor, data))):
            return tuple(self.part(each) for each in data)
        if isinstance(data, list):  # of batches, or of single samples: a list still, which is read as either
            return [data[position] for position in self.checked(len(data))]
        if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
            return Subset(data, list(self.checked(len(data))))
        raise InvalidTypeError(
            f"a {type(data).__name__} has no numbered samples to take a rank's part of; let each rank read its own "
            "part (datasets.distributed.split_dataset_by_node of a stream) and pass that"
        )

    def checked(self, count: int) -> range:
        """As :meth:`positions`, of no fewer samples than ranks.

        Raises:
            ValueError: fewer.
        """
        if count < self.ranks:
            raise InvalidValueError(
                f"{count} samples are fewer than the {self.ranks} ranks: each needs one at least. Start fewer"
            )
        return self.positions(count)

    # ------------------------------------------------------------------ what the ranks find out together

    def total(self, part: Tensor) -> Tensor:
        """The sum over ranks of tensors of one shape, the same bits on every rank. ``part`` is used up."""
        part = part.contiguous()
        with self._together():
            dist.all_reduce(part, group=self.group)
        return part

    def collected(self, own: Tensor, counts: Sequence[int], dim: int = 0) -> Tensor:
        """Every rank's rows one after the other, on every rank.

        Args:
            own: this rank's, ``counts[rank]`` along ``dim``; the other dimensions are the same on all ranks.
            counts: how many each rank has.
            dim: along which rows are counted.
        """
        most = max(counts)
        moved = own.movedim(dim, 0)
        padded = moved.new_zeros(most, *moved.shape[1:])
        padded[: len(moved)] = moved
        found = [torch.empty_like(padded) for _ in counts]
        with self._together():
            dist.all_gather(found, padded, group=self.group)
        rows = torch.cat([each[:count] for each, count in zip(found, counts, strict=True)])
        return rows.movedim(0, dim)

    def shown(self, tensor: Tensor, source: int) -> Tensor:
        """The tensor of one rank, on every rank; the others bring one of that shape to be written to."""
        origin = source if self.group is None else dist.get_global_rank(self.group, source)
        with self._together():
            dist.broadcast(tensor, origin, group=self.group)
        return tensor

    def objects(self, what: str, own: Any) -> list[Any]:
        """What every rank brings, in the order of ranks: small things that can be pickled.

        Args:
            what: it is, in a few words, the same on every rank.
            own: this rank's.

        Raises:
            FailedError: another rank brings something else: it is at another call.
        """
        found: list[Any] = [None] * self.ranks
        with self._together():
            dist.all_gather_object(found, (what, own), group=self.group)
        for rank, (theirs, _) in enumerate(found):
            if theirs != what:
                raise FailedError(
                    f"rank {rank} is at another call than rank {self.rank}: it exchanges {theirs}, not {what}. "
                    "Every rank must make the same calls in the same order, and all must end where one fails"
                )
        return [each for _, each in found]

    def differing(self, *tensors: Tensor) -> list[int]:
        """Which of at most four tensors are not the same on every rank, as far as sums of their bits tell."""
        own = torch.zeros(COMPARED, 2, dtype=torch.int64, device=tensors[0].device)
        for place, tensor in enumerate(tensors):
            own[place] = _checksum(tensor)
        found = [torch.empty_like(own) for _ in range(self.ranks)]
        with self._together():
            dist.all_gather(found, own, group=self.group)
        unlike = torch.stack([each != own for each in found]).any(0).any(1)
        return [int(place) for place in unlike.nonzero()]

    @property
    def needs_cuda(self) -> bool:
        """Whether the group can add up tensors of GPUs alone."""
        return dist.get_backend(self.group) == dist.Backend.NCCL

    @contextlib.contextmanager
    def failing_together(self, what: str) -> Iterator[None]:
        """If the block fails on one rank, it fails on all: none waits for one that will not come.

        Args:
            what: could not be done, "build its risk".

        Raises:
            FailedError: on the ranks where it did not fail.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # whatever it was, it is raised again below
            error = raised
        line = None if error is None else f"{type(error).__name__}: {error}"
        said = self.objects(f"whether it could {what}", line)
        if error is not None:
            raise error
        for rank, theirs in enumerate(said):
            if theirs is not None:
                raise FailedError(f"rank {rank} could not {what}: {theirs}")

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """A collective, whose failure is that of another rank."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:120]
            raise LostRankError(
                f"rank {self.rank} of {self.ranks} lost {self._missing()}, which ended or did not answer within "
                f"the process group's timeout ({reason}). Its own error, if it had one, is the cause; a simulation "
                "with a checkpoint goes on from there when started again, on as many ranks as you like"
            ) from error

    def _missing(self) -> str:
        """Which ranks do not answer a roll call in the store that the group was begun with."""
        try:
            store = dist.distributed_c10d._get_default_store()  # noqa: SLF001  torch has no public way
            store.set(f"noisescape/left/{self.rank}", "1")
            others = {rank for rank in range(self.ranks) if rank != self.rank}
            until = time.monotonic() + ROLL_CALL_SECONDS
            while others and time.monotonic() < until:
                others = {rank for rank in others if not store.check([f"noisescape/left/{rank}"])}
                time.sleep(0.05)
        except (RuntimeError, ValueError):  # the store was with the rank that is gone
            return "another rank"
        if not others:
            return "another rank"
        return f"rank{'s' * (len(others) > 1)} {', '.join(map(str, sorted(others)))}"


def is_first(shard: Shard | None) -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return shard is None or shard.rank == 0


def failing_together(shard: Shard | None, what: str) -> contextlib.AbstractContextManager[None]:
    """:meth:`Shard.failing_together`, where there are ranks."""
    return contextlib.nullcontext() if shard is None else shard.failing_together(what)


def end_together(shard: Shard) -> None:
    """End the default process group when all ranks are done: for a program's last line.

    A rank whose group is still there when its program ends may be aborted in the middle of that.
    """
    shard.objects("that it is done", True)
    dist.destroy_process_group()


def _checksum(tensor: Tensor) -> Tensor:
    """Of a tensor's bits, two whole numbers that change with a bit and with its place; (2,), on its device."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % 8:  # words begin at whole words
        flat = flat.clone()
    bits = flat.view(torch.uint8)
    whole = len(bits) - len(bits) % (8 * WORDS)
    words, rest = bits[:whole].view(torch.int64).view(-1, WORDS), bits[whole:].long()
    first = _by_place(words.sum(0)) + _by_place(rest)
    second = 31 * _by_place(words.sum(1)) + rest.sum() + len(bits)
    return torch.stack([first, second])


def _by_place(numbers: Tensor) -> Tensor:
    return (numbers * torch.arange(1, len(numbers) + 1, device=numbers.device)).sum()
