"""What ranks do wrong is refused on every rank, by an error that names it, and none waits for another."""

import json
import re

import pytest

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
    "a_rehearsal": r"InvalidValueError: what a shard takes cannot be rehearsed",
}
APART = {
    "data_of_one_rank_broken": [
        r"FailedError: rank 1 could not build its risk: InvalidValueError: inputs and targets disagree",
        r"InvalidValueError: inputs and targets disagree",
    ]
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    made = once(tmp_path_factory, "mistakes", lambda folder: of_ranks("shard_mistakes.py", 2, folder))
    return [json.loads((made / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("mistake", [mistake.__name__ for mistake in MISTAKES])
def test_every_rank_is_told(mistake, reported):
    expected = APART.get(mistake) or [ALIKE[mistake]] * 2
    for report, line in zip(reported, expected, strict=True):
        assert re.match(line, report[mistake]), report[mistake]


def test_and_the_ranks_go_on(reported):
    risk = ns.EmpiricalRisk(net(), LOSS, DATA)
    assert all(report["and then"] == pytest.approx(float(risk.loss(risk.parameters()))) for report in reported)


def test_a_shard_needs_a_process_group():
    with pytest.raises(ValueError, match=r"no process group runs: start the program by torchrun"):
        Shard.of_process_group()
