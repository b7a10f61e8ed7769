"""Sharded over two ranks and replicated twice: ``torchrun --nproc-per-node 4 hybrid_training.py OUT``."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

import noisescape as ns
from training_loops import micro_batches, small_net

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    model = small_net()
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = ns.Monitor(model, optimizer, every=5, measure_every=1)
    for step in micro_batches(5, 8, 4):
        for inputs, targets in step[dist.get_rank() :: 4]:
            (nn.functional.cross_entropy(model(inputs), targets) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        report = monitor.step()
    (Path(sys.argv[1]) / f"{dist.get_rank()}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
