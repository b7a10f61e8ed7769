"""The noise knob under data parallelism, in two real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import noisescape as ns

RANKS, MICRO_STEPS, COUNT, BATCH_SIZE = 2, 2, 5, 3


def piece(rank: int, micro_step: int) -> tuple[Tensor, torch.Generator]:
    """Its samples, and the generator that the whole rank goes on with."""
    own = torch.Generator().manual_seed(10 * rank + micro_step)
    return torch.randn(COUNT, 4, generator=own, dtype=torch.float64), torch.Generator().manual_seed(rank)


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2).double()


def train(rank: int, folder: str) -> None:
    """One step of a user's loop: two micro-steps on every rank, the first of them not reduced."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    model = DistributedDataParallel(new_model())
    generator = piece(rank, 0)[1]
    share = BATCH_SIZE / (RANKS * MICRO_STEPS)

    def backward(micro_step: int) -> None:
        losses = model(piece(rank, micro_step)[0]).square().mean(1)
        (ns.as_if_batch(losses, share, generator=generator) / MICRO_STEPS).backward()

    with model.no_sync():
        backward(0)
    backward(1)
    torch.save([parameter.grad for parameter in model.parameters()], Path(folder) / f"rank-{rank}.pt")
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_and_micro_steps_average_their_own_weights(tmp_path: Path) -> None:
    mp.spawn(train, args=(str(tmp_path),), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(RANKS)]
    model = new_model()
    share = BATCH_SIZE / (RANKS * MICRO_STEPS)
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(RANKS):
        generator = piece(rank, 0)[1]
        for micro_step in range(MICRO_STEPS):
            z = torch.randn(COUNT, generator=generator, dtype=torch.float64)
            scale = ((COUNT / share - 1) * COUNT / (COUNT - 1)) ** 0.5
            weights = (1 + scale * (z - z.mean())) / COUNT
            losses = model(piece(rank, micro_step)[0]).square().mean(1)
            total = total + weights @ losses / (RANKS * MICRO_STEPS)
    expected = torch.autograd.grad(total, [*model.parameters()])
    for found in ranks:
        for own, one in zip(found, expected, strict=True):
            assert_close(own, one, rtol=1e-12, atol=1e-12)
