"""What ranks do wrong, each to be refused on every rank and by none waited for: ``shard_mistakes.py OUT``."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import noisescape as ns
from cases import F64, classes, normal
from noisescape.distributed import Shard

DATA = normal(13, 4, seed=1), classes(13, of=3, seed=2)
LOSS = nn.functional.cross_entropy


def net(seed=0, width=3):
    torch.manual_seed(seed)
    return nn.Linear(4, width).to(F64)


def good(shard):
    return ns.EmpiricalRisk(net(), LOSS, shard.part(DATA), shard=shard)


def the_same_samples(shard):
    ns.EmpiricalRisk(net(), LOSS, DATA, shard=shard)


def models_of_other_seeds(shard):
    ns.EmpiricalRisk(net(seed=shard.rank), LOSS, shard.part(DATA), shard=shard)


def models_of_other_sizes(shard):
    ns.EmpiricalRisk(net(width=3 + shard.rank), LOSS, shard.part(DATA), shard=shard)


def another_theta(shard):
    risk = good(shard)
    risk.gradient(risk.parameters() + shard.rank)


def another_theta_of_an_operator(shard):
    risk = good(shard)
    risk.hessian(risk.parameters() + shard.rank) @ risk.parameters()


def data_of_one_rank_broken(shard):
    inputs, targets = shard.part(DATA)
    ns.EmpiricalRisk(net(), LOSS, (inputs, targets[shard.rank :]), shard=shard)


def a_loss_of_one_rank_not_finite(shard):
    inputs, targets = shard.part(DATA)
    inputs = torch.where(torch.tensor(shard.rank == 1), torch.nan, inputs)
    ns.EmpiricalRisk(net(), LOSS, (inputs, targets), shard=shard).loss(good(shard).parameters())


def a_sampler_that_repeats(shard):
    dataset = TensorDataset(*DATA)
    sampler = DistributedSampler(dataset, shard.ranks, shard.rank, shuffle=False)
    ns.EmpiricalRisk(net(), LOSS, DataLoader(dataset, sampler=sampler), shard=shard)


def no_sample_for_a_rank(shard):
    shard.part((DATA[0][:1], DATA[1][:1]))


def a_stream_to_be_divided(shard):
    shard.part(iter([DATA]))


def a_rehearsal(shard):
    ns.forecast_memory(good(shard), lambda risk, theta: risk.gradient(theta))


MISTAKES = [
    the_same_samples,
    models_of_other_seeds,
    models_of_other_sizes,
    another_theta,
    another_theta_of_an_operator,
    data_of_one_rank_broken,
    a_loss_of_one_rank_not_finite,
    a_sampler_that_repeats,
    no_sample_for_a_rank,
    a_stream_to_be_divided,
    a_rehearsal,
]

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    torch.set_num_threads(1)
    shard, report = Shard.of_process_group(), {}
    for mistake in MISTAKES:
        try:
            mistake(shard)
            report[mistake.__name__] = "not refused"
        except ns.NoisescapeError as error:
            report[mistake.__name__] = f"{type(error).__name__}: {error}"
    report["and then"] = float(good(shard).loss(good(shard).parameters()))
    (Path(sys.argv[1]) / f"{shard.rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
