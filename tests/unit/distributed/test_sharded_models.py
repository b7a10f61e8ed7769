"""Models that ``fully_shard`` has divided, DTensors, DDP: the same numbers as the plain model, and left alone."""

import json

import pytest
import torch

import noisescape as ns
from sharded_models import INPUTS, KINDS, LOSS, REFUSED, TARGETS, asked, net
from torchrun import of_ranks, once

pytestmark = pytest.mark.slow

REASONS = {
    "fsdp1": r"InvalidTypeError: the model is in FullyShardedDataParallel (FSDP1)",
    "frozen": r"InvalidValueError: the parameters 0.weight, 0.bias are frozen and lie with several ranks",
    "tensor_parallel": r"InvalidValueError: the model computes with DTensors",
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    made = once(tmp_path_factory, "models", lambda folder: of_ranks("sharded_models.py", 2, folder))
    return [json.loads((made / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def plain():
    risk = ns.EmpiricalRisk(net(), LOSS, (INPUTS, TARGETS))
    return asked(risk, risk.parameters() + 0.1)


@pytest.mark.parametrize(
    "what", ["parameters", "gradient", "hvp", "hessian", "forms of noise", "trace", "alignment"]
)
@pytest.mark.parametrize("kind", [make.__name__ for make in KINDS])
def test_they_give_what_the_plain_model_does(kind, what, reported, plain):
    for report in reported:
        torch.testing.assert_close(
            torch.tensor(report[kind][what]), torch.tensor(plain[what]), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("kind", [make.__name__ for make in KINDS])
def test_they_are_left_as_they_were_and_train_on(kind, reported):
    assert all(report[kind]["unchanged"] and report[kind]["trained"] for report in reported)


@pytest.mark.parametrize("kind", [make.__name__ for make in REFUSED])
def test_what_cannot_be_evaluated_is_refused_with_the_reason(kind, reported):
    assert all(report[kind].startswith(REASONS[kind]) for report in reported), reported[0][kind]
