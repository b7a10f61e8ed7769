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
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

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


def other_directions(shard):
    risk = good(shard)
    risk.hvp(risk.parameters(), normal(15, seed=shard.rank))


def other_directions_of_kept_graphs(shard):
    risk = good(shard)
    hessian = risk.hessian(risk.parameters())
    for seed in (0, shard.rank):
        hessian @ normal(15, seed=seed)


def other_directions_of_held_gradients(shard):
    risk = good(shard)
    risk.noise_covariance(risk.parameters(), 2) @ normal(15, seed=shard.rank)


def other_weights(shard):
    risk = good(shard)
    risk.vjp(risk.parameters(), normal(13, seed=shard.rank))


def another_batch(shard):
    risk = good(shard)
    risk.minibatch_gradient(risk.parameters(), torch.tensor([shard.rank, 5]))


def other_probes(shard):
    risk = ns.EmpiricalRisk(net(width=80), LOSS, shard.part(DATA), shard=shard)
    ns.trace(risk.hessian(risk.parameters()), seed=shard.rank, rtol=0.3)


def draws_of_other_generators(shard):
    risk = good(shard)
    generator = torch.Generator().manual_seed(shard.rank)
    risk.noise_covariance(risk.parameters(), 2).sample(1, generator)


def simulations_of_other_seeds(shard):
    risk = good(shard)
    ns.simulate(risk, ns.SGD(2), risk.parameters(), lr=0.1, steps=2, seed=shard.rank, progress=False)


def a_loss_of_other_weights(shard):
    weight = torch.tensor([1.0, 1.0 + shard.rank, 1.0], dtype=F64)
    ns.EmpiricalRisk(net(), nn.CrossEntropyLoss(weight=weight), shard.part(DATA), shard=shard)


def another_temperature(shard):
    class Cooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.temperature = net(), 1.0 + shard.rank

        def forward(self, x):
            return self.inner(x) / self.temperature

    ns.EmpiricalRisk(Cooled(), LOSS, shard.part(DATA), shard=shard)


def another_budget(shard):
    ns.EmpiricalRisk(net(), LOSS, shard.part(DATA), shard=shard, memory_budget=2**20 * (1 + shard.rank))


def data_in_another_order(shard):
    inputs, targets = normal(80, 4, seed=1), classes(80, of=3, seed=2)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(shard.rank))
    ns.EmpiricalRisk(net(), LOSS, shard.part((inputs[order], targets[order])), shard=shard)


def a_sampler_that_leaves_some_out(shard):
    dataset = TensorDataset(*DATA)
    sampler = DistributedSampler(dataset, shard.ranks, shard.rank, shuffle=False, drop_last=True)
    loader = DataLoader(dataset, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    ns.EmpiricalRisk(net(), LOSS, loader, shard=shard)


def a_metric_of_one_rank_alone(shard):
    risk = good(shard)
    risk.metric(risk.parameters(), lambda outputs, targets: outputs[:, 0] if shard.rank == 0 else outputs)


def a_checkpoint_in_no_folder(shard):
    risk = good(shard)
    place = "/nowhere/at/all.safetensors"
    ns.simulate(risk, ns.SGD(2), risk.parameters(), lr=0.1, steps=2, checkpoint=place, progress=False)


def a_number_for_a_shard(shard):
    ns.EmpiricalRisk(net(), LOSS, DATA, shard=shard.rank)


def a_call_of_one_rank_alone(shard):
    shard.objects("a name" if shard.rank else "a number", shard.rank)


def a_rehearsal(shard):
    ns.forecast_memory(good(shard), lambda risk, theta: risk.gradient(theta))


def theta_broadcast(shard):
    """What the error of another θ advises, done: a θ changed on one rank, then broadcast in place."""
    risk = good(shard)
    theta = risk.parameters()
    risk.loss(theta)
    if shard.rank == 1:
        theta.add_(1.0)
    dist.broadcast(theta, src=0)
    return float(risk.loss(theta))


def list_of_batches(shard):
    batches = [(DATA[0][start : start + 3], DATA[1][start : start + 3]) for start in range(0, 13, 3)]
    risk = ns.EmpiricalRisk(net(), LOSS, shard.part(batches), shard=shard)
    return float(risk.noise_covariance(risk.parameters(), 1).trace())


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
    other_directions,
    other_directions_of_kept_graphs,
    other_directions_of_held_gradients,
    other_weights,
    another_batch,
    other_probes,
    draws_of_other_generators,
    simulations_of_other_seeds,
    a_loss_of_other_weights,
    another_temperature,
    another_budget,
    data_in_another_order,
    a_sampler_that_leaves_some_out,
    a_metric_of_one_rank_alone,
    a_checkpoint_in_no_folder,
    a_number_for_a_shard,
    a_call_of_one_rank_alone,
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
    report["broadcast"] = theta_broadcast(shard)
    report["list of batches"] = list_of_batches(shard)
    report["and then"] = float(good(shard).loss(good(shard).parameters()))
    (Path(sys.argv[1]) / f"{shard.rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
