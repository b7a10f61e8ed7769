"""What ranks do wrong is refused on every rank, by an error that names it, and none waits for another."""

import json
import re

import numpy as np
import pytest
import torch

import noisescape as ns
from noisescape.distributed import Shard
from shard_mistakes import DATA, LOSS, MISTAKES, net
from torchrun import of_ranks, once

ALIKE = {
    "the_same_samples": r"InvalidValueError: ranks 0 and 1 hold the same 13 samples.*shard\.part\(data\)",
    "models_of_other_seeds": r"InvalidValueError: the parameters of rank 1 and of rank 0 differ.*same seed",
    "models_of_other_sizes": r"InvalidValueError: the number of parameters of rank 1 and of rank 0 differ",
    "another_theta": r"InvalidValueError: θ is not the same on every rank.*broadcast",
    "another_theta_of_an_operator": r"InvalidValueError: θ is not the same on every rank",
    "a_loss_of_one_rank_not_finite": r"NonFiniteLossError: 6 of 13 losses .* the first that of sample 7",
    "a_sampler_that_repeats": r"InvalidValueError: the DistributedSampler repeats 1 samples",
    "no_sample_for_a_rank": r"InvalidValueError: 1 samples are fewer than the 2 ranks",
    "a_stream_to_be_divided": r"InvalidTypeError: a list_iterator has no numbered samples",
    **dict.fromkeys(
        (
            "other_directions",
            "other_directions_of_kept_graphs",
            "other_directions_of_held_gradients",
            "other_weights",
            "another_batch",
            "other_probes",
        ),
        r"InvalidValueError: directions, weights or indices are not the same on every rank: draw them",
    ),
    "draws_of_other_generators": r"InvalidValueError: the generator is not in the same state on every rank",
    "simulations_of_other_seeds": r"InvalidValueError: rank \d would not run .* \(seed: \d there, \d here\)",
    "a_loss_of_other_weights": r"InvalidValueError: a sample has loss .* on rank \d, and .* the same weights",
    "another_temperature": r"InvalidValueError: a sample has loss .* a model with the same settings",
    "another_budget": r"InvalidValueError: the memory_budget of rank 1 and of rank 0 differ: give every",
    "data_in_another_order": r"InvalidValueError: \d+ samples are with more than one rank, .* with a fixed seed",
    "a_sampler_that_leaves_some_out": r"InvalidValueError: the DistributedSampler leaves out 1 samples",
    "a_number_for_a_shard": r"InvalidTypeError: shard is a Shard, Shard\.of_process_group\(\), not int",
    "a_call_of_one_rank_alone": r"FailedError: rank \d is at another call than rank \d: it exchanges a n",
    "a_rehearsal": r"InvalidValueError: what a shard takes cannot be rehearsed",
}
APART = {
    "data_of_one_rank_broken": [
        r"FailedError: rank 1 could not build its risk: InvalidValueError: inputs and targets disagree",
        r"InvalidValueError: inputs and targets disagree",
    ],
    "a_metric_of_one_rank_alone": [
        r"FailedError: rank 1 could not evaluate the metric: InvalidValueError: the metric of 6 samples has shape",
        r"InvalidValueError: the metric of 6 samples has shape",
    ],
    "a_checkpoint_in_no_folder": [
        r"InvalidValueError: the checkpoint /nowhere/at/all.safetensors cannot be kept: /nowhere/at is no folder",
        r"FailedError: rank 0 could not keep a checkpoint: InvalidValueError: the checkpoint",
    ],
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    made = once(tmp_path_factory, "mistakes", lambda folder: of_ranks("shard_mistakes.py", 2, folder))
    return [json.loads((made / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [mistake.__name__ for mistake in MISTAKES])
def test_every_rank_is_told(mistake, reported):
    expected = APART.get(mistake) or [ALIKE[mistake]] * 2
    for report, line in zip(reported, expected, strict=True):
        assert re.match(line, report[mistake]), report[mistake]


@pytest.mark.slow
def test_and_the_ranks_go_on(reported):
    risk = ns.EmpiricalRisk(net(), LOSS, DATA)
    assert all(report["and then"] == pytest.approx(float(risk.loss(risk.parameters()))) for report in reported)


@pytest.mark.slow
def test_a_theta_that_is_broadcast_is_the_same_again(reported):
    risk = ns.EmpiricalRisk(net(), LOSS, DATA)
    wanted = float(risk.loss(risk.parameters()))
    assert all(report["broadcast"] == pytest.approx(wanted) for report in reported)


@pytest.mark.slow
def test_a_list_of_batches_is_parted_as_one(reported):
    risk = ns.EmpiricalRisk(net(), LOSS, DATA)
    wanted = float(risk.noise_covariance(risk.parameters(), 1).trace())
    assert all(report["list of batches"] == pytest.approx(wanted) for report in reported)


def test_what_belongs_to_all_samples_is_not_parted():
    part = Shard(rank=1, ranks=2).part({"x": torch.arange(4), "scale": 2.0, "name": "a", "none": None})
    assert part["x"].tolist() == [2, 3]
    assert (part["scale"], part["name"], part["none"]) == (2.0, "a", None)
    assert Shard(rank=0, ranks=2).part(np.arange(3)).tolist() == [0, 1]


def test_a_shard_needs_a_process_group():
    with pytest.raises(ValueError, match=r"no process group runs: start the program by torchrun"):
        Shard.of_process_group()
