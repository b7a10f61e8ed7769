"""The published code's fault in the toy: covariances of running sums of gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import F64, generator
from noisescape.experiments.protocols.toy_2d import RunningSums, toy_dynamics
from noisescape.theory.landscapes import SHARP_MINIMUM, toy_2d, toy_points
from slowness import quick

START = torch.tensor(SHARP_MINIMUM, dtype=F64)


@pytest.fixture(scope="module")
def points() -> Tensor:
    """One data set."""
    return toy_points(1, 30, generator(4), F64)[0]


@pytest.fixture(scope="module")
def gradients(points: Tensor) -> list[Tensor]:
    """Those of single samples at the start."""
    along = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=F64) / math.sqrt(2)
    curvature = 2 * along.T @ torch.diag(torch.tensor([10.0, 100.0], dtype=F64)) @ along
    return [-curvature @ point for point in points]


@pytest.fixture(scope="module")
def faulty(gradients: list[Tensor]) -> Tensor:
    """The covariance of their running sums, written out."""
    sums = [sum(gradients[: n + 1]) for n in range(len(gradients))]
    mean = sum(sums) / len(sums)
    return sum(torch.outer(row - mean, row - mean) for row in sums) / len(sums)


def test_the_published_fault_is_a_covariance_of_running_sums(
    points: Tensor, gradients: list[Tensor], faulty: Tensor
) -> None:
    right = torch.cov(torch.stack(gradients).T, correction=0)
    published, corrected = toy_2d(points, kind=RunningSums), toy_2d(points)
    assert_close(published.noise_covariance(START, 1).dense(), faulty, rtol=1e-9, atol=1e-12)
    assert_close(corrected.noise_covariance(START, 1).dense(), right, rtol=1e-9, atol=1e-12)
    assert_close(published.gradient(START), corrected.gradient(START))
    assert_close(published.losses(START), corrected.losses(START))


@pytest.mark.parametrize("name", quick(["gd", "gld-diagonal", "gld-leading"], toy_dynamics(400.0)))
def test_noise_of_running_sums_has_their_covariance_and_does_not_drift(
    name: str, points: Tensor, faulty: Tensor
) -> None:
    published, corrected, shape = toy_2d(points, kind=RunningSums), toy_2d(points), toy_dynamics(400.0)[name]
    state = shape.init(published)
    noisy = [shape.noisy_gradient(published, START, state, generator(seed))[0] for seed in range(400)]
    error = torch.stack(noisy).std(0) / 20
    gap = (torch.stack(noisy).mean(0) - corrected.gradient(START)).abs()
    assert (gap <= 4.5 * error + 1e-9).all(), "it drifts along ∇L, whatever scatters how"
    if name == "gd":
        return
    gradient = shape.noise(published, START, None, generator(0))[1]
    if gradient is not None:
        assert_close(gradient, corrected.gradient(START), rtol=1e-9, atol=1e-9)
    wanted = {
        "gld-diagonal": torch.diag(faulty.diagonal()) * 400 / faulty.trace(),
        "gld-leading": 400 * faulty / faulty.trace(),
        "gld-leading-1": 400 * torch.outer(*[torch.linalg.eigh(faulty).eigenvectors[:, -1]] * 2),
    }.get(name)
    found = shape.covariance(published, START).dense()
    if wanted is None:  # it does not look at the data
        wanted = shape.covariance(corrected, START).dense()
    assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    assert float(found.trace()) == pytest.approx(400)
