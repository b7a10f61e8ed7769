"""The per-sample gradients of samples that lie with several ranks: each holds its own, products are of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.sharded_samples import ShardedSamples


@dataclass(frozen=True)
class ShardedGradients:
    """G, (N, D), of which this rank holds the rows of its own samples.

    Attributes:
        own: those rows, (n, D).
        samples: whose gradients they are.
    """

    own: FactoredGradients
    samples: ShardedSamples

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.samples.count, self.own.shape[1]

    @property
    def direct(self) -> Tensor:
        """The columns that are held as they are, of this rank's rows."""
        return self.own.direct

    def __matmul__(self, block: Tensor) -> Tensor:
        """Gv: (D, K) → (N, K), on every rank."""
        return self.samples.collected(self.own @ block)

    def weighted(self, weights: Tensor) -> Tensor:
        """Gᵀw: (N, K) → (D, K), on every rank."""
        return self.samples.total(self.own.weighted(weights[self.samples.span]))

    def mean(self) -> Tensor:
        """ḡ, (D,)."""
        return self.samples.total(self.own.mean() * (len(self.own) / self.samples.count))

    def moments(self, *, centred: bool = True) -> tuple[Tensor, Tensor]:
        """As :meth:`FactoredGradients.moments`, over the rows of all ranks."""
        return self.samples.merged_moments(*self.own.moments(centred=centred))

    def gram(self) -> Tensor:
        """GGᵀ, (N, N): the rows of each rank are shown to the others in turn."""
        blocks = [self.own.inner(theirs) for theirs in self._of_ranks()]
        return self.samples.collected(torch.cat(blocks, dim=1))

    def rows(self) -> Tensor:
        """G itself, (N, D), on every rank."""
        return self.samples.collected(self.own.rows())

    def _of_ranks(self) -> Iterator[FactoredGradients]:
        shard = self.samples.shard
        for rank, count in enumerate(self.samples.counts):
            room = self.own if rank == shard.rank else self.own.room_for(count)
            for tensor in room.tensors():
                shard.shown(tensor.contiguous() if rank == shard.rank else tensor, rank)
            yield room
