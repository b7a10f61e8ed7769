"""Moments, norms and leading directions of per-sample gradients, in chunks and by sketches."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cases import CASES, F64, close, normal
from noisescape.linops.gram import leading_pairs, sketched_pairs
from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.gradient_covariance import gradient_moments
from noisescape.risk.gradients import per_sample_square_norms


@pytest.mark.parametrize("budget", [None, 3_000])
def test_moments_are_mean_and_variance_of_the_gradients(budget: int | None) -> None:
    case = CASES["conv"]
    mean, variances = gradient_moments(case.risk(memory_budget=budget), case.theta)
    assert_close(mean, case.gradients().mean(0), rtol=1e-10, atol=1e-12)
    assert_close(variances, case.gradients().var(0, correction=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", [None, 3_000])
def test_square_norms_of_the_gradients(budget: int | None) -> None:
    case = CASES["conv"]
    found = per_sample_square_norms(case.risk(memory_budget=budget), case.theta)
    assert_close(found, case.gradients().square().sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_sketched_pairs_capture_what_the_best_rank_does(shape: tuple[int, int]) -> None:
    spectrum = torch.arange(1, 301, dtype=F64) ** -0.7  # slow decay: hard for a sketch
    left, right = torch.linalg.qr(normal(shape[0], 300, seed=1)).Q, torch.linalg.qr(normal(shape[1], 300, seed=2)).Q
    rows = (left * spectrum) @ right.T
    gradients = FactoredGradients.of_rows(rows)
    values, vectors = sketched_pairs(gradients, 20, centred=False)
    assert_close(vectors.T @ vectors, torch.eye(20, dtype=F64), rtol=0, atol=1e-10)
    assert_close(values, spectrum[:20].square(), rtol=0.02, atol=0)
    captured = (rows @ vectors).square().sum()
    assert float(captured / spectrum[:20].square().sum()) > 0.999
    assert all(
        torch.equal(one, other)
        for one, other in zip(sketched_pairs(gradients, 20, centred=False), (values, vectors), strict=True)
    )


def test_sketched_pairs_of_small_matrices_are_exact() -> None:
    rows = normal(30, 50, seed=4)
    found = sketched_pairs(FactoredGradients.of_rows(rows), 5, centred=False)
    assert all(torch.equal(one, other) for one, other in zip(found, leading_pairs(rows, 5), strict=True))


def test_leading_pairs_of_replicas_are_those_of_each() -> None:
    rows = normal(3, 5, 8, seed=4)
    values, vectors = leading_pairs(rows, 2)
    for r in range(3):
        alone, _ = leading_pairs(rows[r], 2)
        close(values[r], alone)
        close(rows[r].T @ (rows[r] @ vectors[r]), values[r] * vectors[r])
