"""A simulation on shards that can lose a rank: ``shard_walk.py OUT END`` as one of several processes.

END is what happens to the last rank at step 40 of 60: ``killed``, ``hanging``, ``failing``, or ``never``;
``slow`` takes its time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import noisescape as ns
from cases import WIDER
from noisescape.distributed import Shard

STEPS, LOST = 60, 40


def walk(out: Path, end: str, shard: Shard) -> None:
    risk = ns.EmpiricalRisk(WIDER.model(), WIDER.loss, shard.part(WIDER.data), shard=shard)

    def on_step(step: int) -> None:
        if end == "slow":
            time.sleep(0.02)
        if step != LOST or shard.rank != shard.ranks - 1:
            return
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "hanging":
            time.sleep(600)
        if end == "failing":
            raise RuntimeError("the disk is full")

    found = ns.simulate(
        risk,
        ns.GLDLeading(5, k=3, refresh=7),
        WIDER.theta,
        lr=0.05,
        steps=STEPS,
        checkpoint=out / "walk.safetensors",
        checkpoint_seconds=0.0,
        progress=False,
        on_step=on_step,
    )
    torch.save(found.theta, out / f"{shard.rank}.pt")


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
    torch.set_num_threads(1)
    walk(Path(sys.argv[1]), sys.argv[2], Shard.of_process_group())
    dist.destroy_process_group()
