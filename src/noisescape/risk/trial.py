"""How much of a model is tried before it is relied on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERIOD = 1_048_573
"""Numbers after which the noise of a trial begins anew: as many again would be independent, and take three quarters
of what such a vector costs at 10⁸. A prime, so that no two rows of a matrix are alike."""


@dataclass(frozen=True)
class Trial:
    """Sizes of the trial: why, in docs/decisions/0012; what they cost, in benchmarks/results/construction.json.

    Attributes:
        samples: unlike samples that are evaluated together.
        memory: bytes that a pool of samples to choose from, and an evaluation of the chosen, may take.
        pool: samples to choose from, at most; ``batches`` of each shape of a stream, with ``samples`` of all.
        batches: of each shape of a stream, at most.
        shapes: of batches that have shapes of their own.
        alone: samples evaluated alone: half of them the first of a batch, half the last, for order may matter.
        copies: of one sample, evaluated together: routing and ranking treat what is alike as no other batch.
        factor: gradients alone are of so many times the loss, for a backward pass that clips what it gets to show.
        compared: samples on which ways to a derivative, and the reduced loss, are compared.
        mapped: samples whose gradients, mapped, are held against those taken one by one.
    """

    samples: int = 64
    memory: int = 2**28
    pool: int = 4096
    batches: int = 8
    shapes: int = 3
    alone: int = 4
    copies: int = 8
    factor: int = 8
    compared: int = 16
    mapped: int = 8


TRIAL = Trial()


def noise(size: int, seed: int) -> Tensor:
    """As good as a standard normal vector, (size,), for a trial."""
    own = torch.randn(min(size, PERIOD), generator=torch.Generator().manual_seed(seed))
    return own if size <= PERIOD else own.repeat(-(-size // PERIOD))[:size]
