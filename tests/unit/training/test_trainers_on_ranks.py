"""Two real processes under torchrun, through transformers and Lightning, report what autograd finds in one."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from noisescape.training.noise_scale import smooth
from trainer_cases import batched
from trainer_ranks import ONE, TWO, UNEQUAL, unequal
from training_loops import of_weighted

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(TESTS), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(TESTS / "trainer_ranks.py"), str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def labels_of(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


def equal(pieces):
    return [1 / len(pieces)] * len(pieces)


def by_all_labels(pieces):
    counts = [labels_of(piece) for piece in pieces]
    return [count / sum(counts) for count in counts]


def by_own_labels(pieces):
    counts = [labels_of(piece) for piece in pieces]
    own = [sum(counts[rank::2]) for rank in (0, 1)]
    return [count / own[number % 2] / 2 for number, count in enumerate(counts)]


@functools.cache
def by_autograd(case, data=None, weights=equal):
    """(Tr Ĉ, ‖ĝ‖²) by step; micro-batches go to the ranks in turn."""
    model = case.model()
    optimizer = case.optimizer(model.parameters())
    batches = batched(data(case.size * 2 * 2 * 2), case.size) if data is not None else case.batches
    parameters, found = list(model.parameters()), []
    for at in range(0, len(batches), 2 * case.pieces):
        pieces = batches[at : at + 2 * case.pieces]
        gradients = torch.stack(
            [
                torch.cat([part.flatten() for part in torch.autograd.grad(model(**piece)["loss"], parameters)])
                for piece in pieces
            ]
        )
        shares = weights(pieces)
        found.append(of_weighted(gradients, [case.size] * len(pieces), shares))
        total, start = (gradients * torch.tensor(shares)[:, None]).sum(0), 0
        for parameter in parameters:
            parameter.grad = total[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()
        optimizer.step()
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case", "data", "weights"),
    [
        ("transformers-two", TWO, None, equal),
        ("transformers-one", ONE, None, equal),
        ("transformers-labels", UNEQUAL, unequal, by_all_labels),
        ("transformers-own-labels", UNEQUAL, unequal, by_own_labels),
        ("lightning-two", TWO, None, equal),
        ("lightning-one", ONE, None, equal),
    ],
)
def test_two_ranks(reported, name, case, data, weights):
    first, second = (rank[name] for rank in reported)
    assert first["warnings"] == second["warnings"] == []
    assert first["report"] == second["report"], "every rank reports the same"
    values = by_autograd(case, data, weights)
    expected, report = smooth(values[:, 0], values[:, 1]), first["report"]
    assert report["noise/measured_steps"] == len(values)
    assert report["noise/pieces"] == 2 * case.pieces
    assert report["noise/batch_size"] == 2 * case.pieces * case.size
    assert report["noise/trace_covariance"] == pytest.approx(expected.trace, rel=1e-6)
    assert report["noise/squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=1e-6)
    assert report["noise/scale_low"] == pytest.approx(expected.scale_low, rel=1e-4)
