"""Tr(HC) and Tr H·Tr C/D from pairs of groups: unbiased for the population, with errors that are true."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64, classes, close, generator, normal
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import dense_hessian
from noisescape.risk.subsets import restricted
from noisescape.training.paired_traces import COLUMNS, PairedTraces, contrasts, paired_traces

REPEATS = 300
SIZES = (12, 27, 64)


@functools.cache
def population() -> tuple[EmpiricalRisk, Tensor]:
    """300 samples of a small network, after some training: curvature and noise of a sample go together."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(F64)
        inputs, targets = normal(300, 3, seed=1), classes(300, of=3, seed=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    risk = EmpiricalRisk(model, F.cross_entropy, (inputs, targets))
    return risk, risk.parameters()


@functools.cache
def exact() -> tuple[Tensor, Tensor]:
    risk, theta = population()
    gradients = torch.stack([risk.vjp(theta, axis) for axis in torch.eye(risk.sample_count, dtype=F64)])
    deviations = gradients - gradients.mean(0)
    return dense_hessian(risk, theta), deviations.T @ deviations / len(gradients)


@functools.cache
def repeated(n: int) -> list[PairedTraces]:
    risk, theta = population()
    draw = generator(4)
    vectors = torch.linalg.eigh(exact()[0]).eigenvectors
    found = []
    for seed in range(REPEATS):
        chosen = torch.randint(0, risk.sample_count, (n,), generator=draw)
        found.append(paired_traces(restricted(risk, chosen), theta, theta[:, None], top=vectors[:, -1], seed=seed))
    return found


def truths() -> dict[str, float]:
    hessian, covariance = exact()
    return {
        "hessian_noise": float((hessian * covariance).sum()),
        "isotropic": float(hessian.trace() * covariance.trace() / len(hessian)),
        "trace_h": float(hessian.trace()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["hessian_noise", "isotropic", "trace_h"])
def test_the_mean_is_that_of_the_population(n, name):
    means = np.array([float(getattr(each, name).mean()) for each in repeated(n)])
    assert abs(means.mean() - truths()[name]) < 4 * means.std() / math.sqrt(REPEATS)


@pytest.mark.slow
def test_the_same_samples_for_both_would_have_a_bias_that_this_can_see():
    """The test above has the power to fail: with H_n and C_n of the same 16 samples it would."""
    risk, theta = population()
    draw = generator(5)
    means = []
    for _ in range(REPEATS):
        some = restricted(risk, torch.randint(0, risk.sample_count, (16,), generator=draw))
        rows = some.per_sample_gradients(theta)
        deviations = rows - rows.mean(0)
        means.append(float((deviations * (some.hessian(theta) @ deviations.T).T).sum() / 15))
    off = np.mean(means) - truths()["hessian_noise"]
    assert off > 6 * np.std(means) / math.sqrt(REPEATS)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["hessian_noise", "isotropic"])
def test_students_interval_over_pairs_covers(n, name):
    truth, covered = truths()[name], 0
    for each in repeated(n):
        values = getattr(each, name)
        half = stats.t.ppf(0.975, len(values) - 1) * float(values.std()) / math.sqrt(len(values))
        covered += abs(float(values.mean()) - truth) <= half
    assert 0.86 <= covered / REPEATS <= 0.985  # its law is skewed, as the docstring says


def test_what_is_said_of_single_samples_is_exact_and_in_order():
    risk, theta = population()
    some = restricted(risk, torch.arange(27))
    direction = normal(len(theta), 2, seed=6)
    rows = torch.stack([some.vjp(theta, axis) for axis in torch.eye(27, dtype=F64)])
    for curvature in (True, False):
        found = paired_traces(some, theta, direction, curvature=curvature)
        close(found.squares, rows.square().sum(1))
        close(found.along, rows @ direction)
        assert len(found.trace_h) == 12 * curvature


@pytest.mark.parametrize("count", [2, COLUMNS + 1, COLUMNS + 2, 9])
def test_contrasts_have_the_covariance_of_an_unbiased_one(count):
    wanted = (torch.eye(count, dtype=F64) - 1 / count) / (count - 1)
    draw = generator(7)
    every = torch.stack(
        [(e := contrasts(count, wanted, draw)) @ e.T for _ in range(1 if count <= COLUMNS + 1 else 4000)]
    )
    assert float(every.sum(1).abs().max()) < 1e-12
    assert float((every.mean(0) - wanted).abs().max()) < (1e-12 if count <= COLUMNS + 1 else 0.015)
