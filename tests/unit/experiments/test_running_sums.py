"""The published code's fault in the toy: covariances of running sums of gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cases import F64, generator
from noisescape.experiments.protocols.toy_2d import RunningSums, toy_dynamics
from noisescape.theory.landscapes import SHARP_MINIMUM, toy_2d, toy_points


def test_the_published_fault_is_a_covariance_of_running_sums() -> None:
    """One data set, at the start: gradients, their running sums and the covariance written out."""
    points = toy_points(1, 30, generator(4), F64)[0]
    start = torch.tensor(SHARP_MINIMUM, dtype=F64)
    along = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=F64) / math.sqrt(2)
    curvature = 2 * along.T @ torch.diag(torch.tensor([10.0, 100.0], dtype=F64)) @ along
    gradients = [-curvature @ point for point in points]
    sums = [sum(gradients[: n + 1]) for n in range(len(gradients))]
    mean = sum(sums) / len(sums)
    faulty = sum(torch.outer(row - mean, row - mean) for row in sums) / len(sums)
    right = torch.cov(torch.stack(gradients).T, correction=0)

    published, corrected = toy_2d(points, kind=RunningSums), toy_2d(points)
    assert_close(published.noise_covariance(start, 1).dense(), faulty, rtol=1e-9, atol=1e-12)
    assert_close(corrected.noise_covariance(start, 1).dense(), right, rtol=1e-9, atol=1e-12)
    assert_close(published.gradient(start), corrected.gradient(start))
    assert_close(published.losses(start), corrected.losses(start))
    for name, shape in toy_dynamics(400.0).items():
        state = shape.init(published)
        noisy = [shape.noisy_gradient(published, start, state, generator(seed))[0] for seed in range(400)]
        error = torch.stack(noisy).std(0) / 20
        gap = (torch.stack(noisy).mean(0) - corrected.gradient(start)).abs()
        assert (gap <= 4.5 * error + 1e-9).all(), "it drifts along ∇L, whatever scatters how"
        if name == "gd":
            continue
        gradient = shape.noise(published, start, None, generator(0))[1]
        if gradient is not None:
            assert_close(gradient, corrected.gradient(start), rtol=1e-9, atol=1e-9)
        wanted = {
            "gld-diagonal": torch.diag(faulty.diagonal()) * 400 / faulty.trace(),
            "gld-leading": 400 * faulty / faulty.trace(),
            "gld-leading-1": 400 * torch.outer(*[torch.linalg.eigh(faulty).eigenvectors[:, -1]] * 2),
        }.get(name)
        found = shape.covariance(published, start).dense()
        if wanted is None:  # it does not look at the data
            wanted = shape.covariance(corrected, start).dense()
        assert_close(found, wanted, rtol=1e-7, atol=1e-9)
        assert float(found.trace()) == pytest.approx(400)
