"""Expected sharpness against its closed form on quadratics."""

from __future__ import annotations

import math

import pytest
import torch

import noisescape as ns
from cases import F64, Case, normal
from dense_indicators import CURVATURE, HERE
from noisescape.theory.landscapes import quadratic


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("place", ["minimum", "elsewhere"])
def test_signed_sharpness_of_a_quadratic_is_its_trace(place: str, seed: int) -> None:
    """ΔL = gᵀν + ½νᵀHν: mean (δ²/2)TrH, variance δ²‖g‖² + (δ⁴/2)TrH²."""
    theta, delta, draws = (HERE if place == "elsewhere" else 0 * HERE), 0.3, 1000
    risk = quadratic(CURVATURE, normal(3, 6, seed=1))
    found = ns.expected_sharpness(risk, theta, delta=delta, draws=draws, seed=seed)
    gradient = CURVATURE @ theta
    variance = delta**2 * float(gradient @ gradient) + delta**4 / 2 * float((CURVATURE * CURVATURE).sum())
    assert abs(found.signed.value - delta**2 / 2 * 8.35) <= 4 * found.signed.stderr
    assert found.signed.stderr == pytest.approx(math.sqrt(variance / draws), rel=0.2)
    assert found.absolute.value >= abs(found.signed.value)
    assert (found.absolute.value == pytest.approx(found.signed.value, rel=1e-12)) == (place == "minimum")
    assert found.delta == delta
    assert 20 < found.signed.dof <= draws - 1  # fewer than n − 1 where the rises are skewed


def test_absolute_sharpness_sees_a_gradient_that_the_signed_one_averages_away() -> None:
    flat = quadratic(torch.zeros(6, 6, dtype=F64), torch.zeros(2, 6, dtype=F64))
    risk = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, sample: (theta * sample).sum(-1), HERE.expand(2, -1), torch.zeros(6, dtype=F64)
    )
    found = ns.expected_sharpness(risk, HERE, delta=0.1, draws=2000)
    expected = 0.1 * float(HERE.norm()) * math.sqrt(2 / math.pi)
    assert abs(found.absolute.value - expected) <= 4 * found.absolute.stderr
    assert abs(found.signed.value) <= 4 * found.signed.stderr
    assert ns.expected_sharpness(flat, HERE).absolute.value == 0


def test_sharpness_of_a_network_is_its_trace_to_second_order(mlp: Case) -> None:
    found = ns.expected_sharpness(mlp.risk(), mlp.theta, delta=0.03, draws=3000, seed=1)
    expected = 0.03**2 / 2 * float(mlp.hessian().trace())
    assert abs(found.signed.value - expected) <= 4 * found.signed.stderr
    assert found.absolute.value >= abs(found.signed.value)


def test_sharpness_is_reproducible_and_prints_both_figures() -> None:
    risk = quadratic(CURVATURE, normal(3, 6, seed=1))
    one = ns.expected_sharpness(risk, HERE, draws=5, seed=2)
    assert one == ns.expected_sharpness(risk, HERE, draws=5, seed=2)
    assert one != ns.expected_sharpness(risk, HERE, draws=5, seed=3)
    assert str(one.signed) in str(one)
    assert str(one.absolute) in str(one)


def test_a_perturbation_into_the_infinite_makes_the_sharpness_infinite() -> None:
    risk = ns.EmpiricalRisk.from_losses(
        lambda theta: torch.where(theta > 0, torch.inf, theta).sum(0, keepdim=True), -torch.ones(1, dtype=F64)
    )
    found = ns.expected_sharpness(risk, -torch.ones(1, dtype=F64), delta=2.0, draws=50)
    assert not math.isfinite(found.signed.value)
    assert not math.isfinite(found.absolute.value)
    with pytest.raises(ns.NonFiniteLossError):
        ns.expected_sharpness(risk, torch.ones(1, dtype=F64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 1}, "draws = 1, but a standard error needs at least 2"),
        ({"delta": 0.0}, "delta must be positive"),
        ({"delta": math.nan}, "delta must be positive"),
    ],
)
def test_bad_sharpness_arguments_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ns.expected_sharpness(quadratic(CURVATURE, normal(3, 6)), HERE, **options)


def test_layer_relative_sharpness_is_the_trace_weighted_by_the_layers(mlp: Case) -> None:
    found = ns.layer_relative_sharpness(mlp.risk(), mlp.theta, delta=0.05, draws=3000, seed=1)
    sizes = [parameter.numel() for parameter in mlp.model().parameters()]
    blocks = zip(mlp.theta.split(sizes), mlp.hessian().diagonal().split(sizes), strict=True)
    expected = 0.05**2 / 2 * sum(float(weights.square().mean() * diagonal.sum()) for weights, diagonal in blocks)
    assert abs(found.signed.value - expected) <= 4 * found.signed.stderr


def test_layer_relative_sharpness_does_not_see_layers_rescaled_against_each_other() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double()
    data = torch.randn(20, 4, dtype=F64), torch.randint(3, (20,))
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    theta = risk.parameters()
    grown = theta.clone()
    grown[: 4 * 8 + 8] *= 3
    grown[4 * 8 + 8 : -3] /= 3
    assert float(risk.loss(grown)) == pytest.approx(float(risk.loss(theta)))
    one, other = (ns.layer_relative_sharpness(risk, point, draws=20, seed=3) for point in (theta, grown))
    assert other.signed.value == pytest.approx(one.signed.value)
    plain = (ns.expected_sharpness(risk, point, draws=20, seed=3).signed.value for point in (theta, grown))
    assert next(plain) != pytest.approx(next(plain), rel=0.1)


def test_layer_relative_sharpness_of_a_closed_form_is_of_one_layer() -> None:
    risk = quadratic(CURVATURE, normal(3, 6, seed=1))
    rms = float(HERE.square().mean().sqrt())
    found = ns.layer_relative_sharpness(risk, HERE, delta=0.1, draws=20, seed=2).signed.value
    assert found == pytest.approx(ns.expected_sharpness(risk, HERE, delta=0.1 * rms, draws=20, seed=2).signed.value)
    with pytest.raises(ValueError, match="one θ"):
        ns.layer_relative_sharpness(risk, HERE.expand(2, -1))
