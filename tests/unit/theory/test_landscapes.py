"""The closed-form landscapes against a literal transcription of their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import F64, generator, normal, symmetric
from noisescape.risk.closed_form import SampleLoss
from noisescape.risk.passes import dense_hessian
from noisescape.risk.samples import Batch
from noisescape.theory.landscapes import FLAT_MINIMUM, GEOMETRIES, SHARP_MINIMUM, quadratic, toy_2d, toy_points

COEFFICIENTS = {"published": (10.0, 100.0), "isotropic": (55.0, 55.0), "rotated": (100.0, 10.0)}
TURN = torch.tensor(
    [[math.cos(math.pi / 4), -math.sin(math.pi / 4)], [math.sin(math.pi / 4), math.cos(math.pi / 4)]],
    dtype=F64,
)
"""Rows (1, −1)/√2 and (1, 1)/√2: w ↦ (u, v)."""


def by_the_formula(w: Tensor, x: Tensor, geometry: str) -> float:
    """min{p·u² + q·v², ‖w − x + (1,1)‖²} for one w and one x."""
    p, q = COEFFICIENTS[geometry]
    ones = torch.ones(2, dtype=F64)
    u, v = (TURN @ (w - x - ones)).tolist()
    away = w - x + ones
    return min(p * u**2 + q * v**2, float(away @ away))


def places() -> Tensor:
    """Both basins, the ridge between them, and far away."""
    line = torch.linspace(-1.5, 1.5, 13, dtype=F64)
    along = torch.stack([line, line], 1)
    return torch.cat([along, 1 + 0.2 * normal(20, 2, seed=1), 1.5 * normal(10, 2, seed=6), 20 * normal(5, 2)])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_toy_losses_are_those_of_the_formula(geometry: str) -> None:
    points = 0.3 * normal(6, 2, seed=3)
    risk = toy_2d(points, geometry)
    expected = torch.tensor([[by_the_formula(w, x, geometry) for x in points] for w in places()], dtype=F64)
    assert_close(risk.losses(places()), expected, rtol=1e-12, atol=1e-12)
    for w, row in zip(places(), expected, strict=True):
        assert_close(risk.losses(w), row, rtol=1e-12, atol=1e-12)
    sharp = torch.tensor(
        [
            [bool(value < (w - x + 1).square().sum()) for x, value in zip(points, row, strict=True)]
            for w, row in zip(places(), expected, strict=True)
        ]
    )
    assert 0.1 < sharp.double().mean() < 0.9, "both branches are exercised"


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_replicas_with_data_of_their_own_are_separate_landscapes(geometry: str) -> None:
    points = 0.3 * normal(4, 6, 2, seed=4)
    places = normal(4, 2, seed=5)
    together = toy_2d(points, geometry)
    for replica in range(4):
        alone = toy_2d(points[replica], geometry)
        assert_close(together.losses(places)[replica], alone.losses(places[replica]), rtol=1e-12, atol=0)
        assert_close(
            together.per_sample_gradients(places)[replica],
            alone.per_sample_gradients(places[replica]),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_per_sample_gradients_are_those_of_the_branch(geometry: str) -> None:
    points = 0.3 * normal(6, 2, seed=3)
    p, q = COEFFICIENTS[geometry]
    risk = toy_2d(points, geometry)
    for w in places():
        expected = []
        for x in points:
            turned = TURN @ (w - x - 1)
            sharp = by_the_formula(w, x, geometry) < float((w - x + 1).square().sum())
            gradient = 2 * TURN.T @ (torch.tensor([p, q], dtype=F64) * turned) if sharp else 2 * (w - x + 1)
            expected.append(gradient)
        assert_close(risk.per_sample_gradients(w), torch.stack(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_two_minima_have_the_curvature_of_their_basins(geometry: str) -> None:
    """x = 0: the sharp basin has 2·diag(p, q) in the (u, v) axes, the flat one 2I."""
    risk = toy_2d(torch.zeros(1, 2, dtype=F64), geometry)
    sharp, flat = (torch.tensor(place, dtype=F64) for place in (SHARP_MINIMUM, FLAT_MINIMUM))
    expected = 2 * TURN.T @ torch.diag(torch.tensor(COEFFICIENTS[geometry], dtype=F64)) @ TURN
    assert_close(dense_hessian(risk, sharp), expected, rtol=1e-12, atol=1e-12)
    assert_close(dense_hessian(risk, flat), 2 * torch.eye(2, dtype=F64), rtol=1e-12, atol=1e-12)
    assert_close(risk.hessian(sharp).dense(), expected, rtol=1e-12, atol=1e-12)
    for place in (sharp, flat):
        assert float(risk.loss(place)) == 0
        assert not risk.gradient(place).any()
    assert torch.equal(risk.parameters(), sharp)


def test_all_geometries_have_the_same_curvature_in_all() -> None:
    assert {sum(coefficients) for coefficients in GEOMETRIES.values()} == {110.0}
    assert GEOMETRIES["published"] == GEOMETRIES["rotated"][::-1]


def test_data_spreads_along_u_by_root_ten_hundredths() -> None:
    points = toy_points(400, 100, generator(1), F64)
    assert points.shape == (400, 100, 2)
    turned = points.reshape(-1, 2) @ TURN.T
    expected = torch.diag(torch.tensor([10e-4, 1e-4], dtype=F64))
    products = turned[:, :, None] * turned[:, None, :]
    assert ((products.mean(0) - expected).abs() <= 4.5 * products.std(0) / math.sqrt(len(turned))).all()
    assert (turned.mean(0).abs() <= 4.5 * turned.std(0) / math.sqrt(len(turned))).all()
    between = (points[:200] * points[200:]).reshape(-1, 2)
    assert (between.mean(0).abs() <= 4.5 * between.std(0) / math.sqrt(len(between))).all(), "replicas differ"


def test_data_is_of_its_seed() -> None:
    one = toy_points(3, 5, generator(1), torch.float32)
    assert one.dtype == torch.float32
    assert torch.equal(one, toy_points(3, 5, generator(1), torch.float32))
    assert not torch.equal(one, toy_points(3, 5, generator(2), torch.float32))


def test_noise_at_the_sharp_minimum_is_that_of_its_data() -> None:
    """There g_n = −2·T'diag(p, q)T·x_n, so C is that map of the data's covariance."""
    points = toy_points(1, 50, generator(2), F64)[0]
    start = torch.tensor(SHARP_MINIMUM, dtype=F64)
    shape = 2 * TURN.T @ torch.diag(torch.tensor([10.0, 100.0], dtype=F64)) @ TURN
    expected = shape @ torch.cov(points.T, correction=0) @ shape / 4
    assert_close(toy_2d(points).noise_covariance(start, 4).dense(), expected, rtol=1e-10, atol=1e-14)


def test_an_unknown_geometry_is_named() -> None:
    with pytest.raises(ValueError, match="unknown geometry 'round'; known: published, isotropic, rotated"):
        toy_2d(torch.zeros(1, 2), "round")


def test_how_the_loss_is_differentiated_can_be_chosen() -> None:
    class Twice(SampleLoss):
        def gradients(self, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
            return 2 * super().gradients(theta, batch)

    points, w = torch.zeros(1, 2), torch.tensor([0.9, 1.2])
    found, plain = (toy_2d(points, kind=kind).per_sample_gradients(w) for kind in (Twice, SampleLoss))
    assert torch.equal(found, 2 * plain)


# ---------------------------------------------------------------------- quadratics


def test_quadratic_has_the_given_curvature_and_noise_everywhere() -> None:
    hessian, linear = symmetric(4, normal(4, seed=1), seed=2), 3 + normal(7, 4, seed=3)
    risk = quadratic(hessian, linear)
    assert not risk.parameters().any()
    for theta in (torch.zeros(4, dtype=F64), normal(4, seed=4)):
        assert_close(risk.loss(theta), 0.5 * theta @ hessian @ theta, rtol=1e-12, atol=1e-12)
        assert_close(risk.gradient(theta), hessian @ theta, rtol=1e-12, atol=1e-12)
        assert_close(risk.hessian(theta).dense(), hessian, rtol=1e-12, atol=1e-12)
        assert_close(
            risk.noise_covariance(theta, 1).dense(), torch.cov(linear.T, correction=0), rtol=1e-12, atol=1e-12
        )
        rows = hessian @ theta + linear - linear.mean(0)
        assert_close(risk.per_sample_gradients(theta), rows, rtol=1e-12, atol=1e-12)
