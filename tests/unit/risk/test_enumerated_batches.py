"""The covariance of a minibatch gradient is that of all batches, enumerated."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cases import Case, classes, close, normal
from noisescape.risk.gradient_covariance import covariance_factor


@pytest.mark.parametrize("streamed", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])
def test_covariance_equals_an_enumeration_of_all_batches(replacement: bool, streamed: bool) -> None:
    case = Case(
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        normal(7, 2, seed=1),
        classes(7, of=2, seed=2),
    )
    rows = case.gradients()
    chosen = itertools.product(range(7), repeat=3) if replacement else itertools.combinations(range(7), 3)
    batches = torch.tensor(list(chosen))
    assert len(batches) == (343 if replacement else 35)
    means = torch.stack([sum(rows[i] for i in batch) / 3 for batch in batches.tolist()])
    deviations = means - rows.mean(0)
    expected = deviations.T @ deviations / len(batches)
    risk = case.risk(memory_budget=1) if streamed else case.risk()
    covariance = risk.noise_covariance(case.theta, 3, replacement=replacement)
    assert_close(covariance.dense(), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    found = torch.stack([risk.minibatch_gradient(case.theta, batch) for batch in batches[:20]])
    assert_close(found, means[:20], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("batch_size", "count"), [(1, 5), (2, 5), (5, 5), (1, 1)])
def test_factor_without_replacement_is_the_enumerated_one(batch_size: int, count: int) -> None:
    values = normal(count, seed=1)
    means = [sum(values[list(batch)]) / batch_size for batch in itertools.combinations(range(count), batch_size)]
    spread = float(torch.stack(means).var(correction=0))
    expected = covariance_factor(batch_size, count, replacement=False) * float(values.var(correction=0))
    assert spread == pytest.approx(expected, abs=1e-14)


def test_covariance_holds_the_parameters_it_was_built_at(mlp: Case) -> None:
    theta = mlp.theta.clone()
    covariance = mlp.risk().noise_covariance(theta, 3)
    theta.zero_()
    close(covariance.dense(), mlp.covariance() / 3)
