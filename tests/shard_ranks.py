"""Asks what is in ``shard_calls`` on several ranks: ``torchrun --nproc-per-node 2 shard_ranks.py OUT RISK ...``."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from noisescape.distributed import Shard
from shard_calls import answers

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    torch.set_num_threads(1)
    shard = Shard.of_process_group()
    torch.save(answers(sys.argv[2:], shard), Path(sys.argv[1]) / f"{shard.rank}.pt")
    dist.destroy_process_group()
