"""What `noisescape measure` is pointed at under torchrun: a risk of two shards."""

import os

import torch
import torch.distributed as dist

import noisescape as ns
from noisescape.distributed import Shard


def whole():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    return model, (torch.randn(37, 5), torch.randint(3, (37,)))


def make_risk():
    model, data = whole()
    if "RANK" not in os.environ:
        return ns.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), data)
    dist.init_process_group("gloo")
    shard = Shard.of_process_group()
    return ns.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), shard.part(data), shard=shard)
