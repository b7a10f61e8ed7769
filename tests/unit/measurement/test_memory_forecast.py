"""A forecast of memory, against the ledger of the same computation on real tensors."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import noisescape as ns
from cases import CASES, bowl_risk
from internals import DECISIONS, decide, decided, found_out
from noisescape.measurement.memory import AllocationTracker
from noisescape.risk.chunking import CACHED_BYTES
from slowness import quick

Computation = Callable[[ns.EmpiricalRisk, torch.Tensor], Any]

COMPUTATIONS: dict[str, Computation] = {
    "gradient": lambda risk, theta: risk.gradient(theta),
    "per-sample gradients": lambda risk, theta: risk.per_sample_gradients(theta),
    "Hessian times a vector": lambda risk, theta: risk.hessian(theta) @ torch.ones_like(theta),
    "Hessian times a block": lambda risk, theta: risk.hessian(theta) @ torch.ones(len(theta), 9, dtype=theta.dtype),
    "Gauss-Newton": lambda risk, theta: risk.gauss_newton(theta) @ torch.ones_like(theta),
    "noise covariance": lambda risk, theta: risk.noise_covariance(theta, 2) @ torch.ones_like(theta),
    "diagonal": lambda risk, theta: risk.noise_covariance(theta, 2).diagonal(),
}


def really(risk: ns.EmpiricalRisk, computation: Computation) -> int:
    """With numbers, but going the way that a forecast goes, which reads 1 for all of them."""
    decide(risk)
    theta, ledger = risk.parameters(), AllocationTracker(without_storage=True)
    with ledger:
        computation(risk, theta)
    return ledger.peak


@pytest.mark.parametrize("name", COMPUTATIONS)
@pytest.mark.parametrize("case", quick(["conv"], ["mlp cross-entropy", "attention"]))
def test_a_forecast_is_what_the_computation_takes(case: str, name: str) -> None:
    risk = CASES[case].risk()
    forecast = ns.forecast_memory(risk, COMPUTATIONS[name])
    assert forecast == pytest.approx(really(risk, COMPUTATIONS[name]), rel=0.08)
    assert forecast > 8 * risk.dimension


def test_the_ledger_counts_what_is_alive_at_once() -> None:
    ledger = AllocationTracker()
    with ledger:
        first = torch.zeros(1000)
        del first
        second = torch.zeros(3000)
        _view = second.view(30, 100)
    assert ledger.peak == 12_000


OF_A_TRAINING_STEP: dict[str, Computation] = {
    "Hessian": lambda risk, theta: risk.hessian(theta) @ torch.ones(len(theta), 1),
    "Hessian, a block": lambda risk, theta: risk.hessian(theta) @ torch.ones(len(theta), 3),
    "Gauss-Newton, a block": lambda risk, theta: risk.gauss_newton(theta) @ torch.ones(len(theta), 3),
    "noise covariance, a block": lambda risk, theta: risk.noise_covariance(theta, 2) @ torch.ones(len(theta), 3),
    "diagonal": lambda risk, theta: risk.noise_covariance(theta, 2).diagonal(),
    "indicator": lambda risk, theta: ns.product_trace(
        risk.hessian(theta), risk.noise_covariance(theta, 2), deflate=2, max_products=4
    ),
}


@pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")
def test_by_default_a_computation_takes_at_most_three_training_steps_of_memory() -> None:
    """A step on as many samples as the caches hold, here all; model and data count on both sides."""
    torch.manual_seed(0)
    convolutions = torch.nn.Conv2d(1, 8, 3), torch.nn.Tanh(), torch.nn.Conv2d(8, 8, 3), torch.nn.Tanh()
    model = torch.nn.Sequential(*convolutions, torch.nn.AvgPool2d(6), torch.nn.Flatten(), torch.nn.Linear(128, 10))
    inputs, targets = torch.randn(800, 1, 28, 28), torch.randint(10, (800,))
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, (inputs, targets))
    with AllocationTracker() as step:
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    held = sum(tensor.nbytes for tensor in (*model.parameters(), inputs, targets))

    found = {
        name: (held + ns.forecast_memory(risk, computation)) / (held + step.peak)
        for name, computation in OF_A_TRAINING_STEP.items()
    }
    assert step.peak > CACHED_BYTES  # below, the caches' bytes are given
    assert max(found.values()) <= 3, found


def test_an_estimate_with_a_stopping_rule_can_be_forecast() -> None:
    risk = CASES["conv"].risk()

    def estimate(risk: ns.EmpiricalRisk, theta: torch.Tensor) -> None:
        ns.product_trace(risk.hessian(theta), risk.noise_covariance(theta, 2), rtol=1.0, deflate=2)

    assert ns.forecast_memory(risk, estimate) == pytest.approx(really(risk, estimate), rel=0.2)


def test_a_smaller_budget_makes_a_smaller_forecast() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
    data = (torch.randn(2000, 5), torch.randint(0, 3, (2000,)))
    forecasts = [
        ns.forecast_memory(
            ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data, memory_budget=budget),
            COMPUTATIONS["gradient"],
        )
        for budget in (2**30, 2**17)
    ]
    assert forecasts[1] < 0.4 * forecasts[0]


def test_streams_and_closed_forms_can_be_forecast() -> None:
    case = CASES["conv"]
    pairs = list(zip(case.inputs.split(4), case.targets.split(4), strict=True))
    streamed = ns.EmpiricalRisk(case.model(), case.loss, pairs, memory_budget=1)
    for risk in (streamed, bowl_risk()):
        assert ns.forecast_memory(risk, COMPUTATIONS["gradient"]) == really(risk, COMPUTATIONS["gradient"])


def test_a_forecast_computes_nothing() -> None:
    risk = CASES["conv"].risk()
    kept: list[torch.Tensor] = []
    ns.forecast_memory(risk, lambda risk, theta: kept.append(risk.gradient(theta)))
    assert isinstance(kept[0], torch._subclasses.FakeTensor)
    torch.testing.assert_close(risk.gradient(CASES["conv"].theta), CASES["conv"].gradients().mean(0))


def test_a_forecast_finds_out_no_more_of_a_model_than_the_computation_asks_for() -> None:
    risk = CASES["conv"].risk()
    ns.forecast_memory(risk, COMPUTATIONS["gradient"])
    assert found_out(risk) == set()
    ns.forecast_memory(risk, COMPUTATIONS["Hessian times a vector"])
    assert found_out(risk) == {"movable", "second_derivative_error"}
    ns.forecast_memory(risk, COMPUTATIONS["Hessian times a block"])
    assert found_out(risk) == {"movable", "second_derivative_error", "forward_over_reverse"}


def test_what_needs_values_is_refused() -> None:
    risk = CASES["conv"].risk()
    with pytest.raises(ValueError, match="needs values, not only shapes"):
        ns.forecast_memory(risk, lambda _risk, theta: theta.numpy())


def test_what_was_there_before_is_not_counted() -> None:
    data = torch.randn(1000, 10)
    with AllocationTracker() as ledger:
        half = data[:500].T.detach()
        assert ledger.peak == 0
        half.sum()
        total = data + 1
    assert ledger.peak == total.numel() * 4


@pytest.mark.parametrize("name", quick([*DECISIONS][::4], DECISIONS))
@pytest.mark.parametrize("case", quick(["conv"], ["mlp cross-entropy", "attention"]))
def test_what_a_risk_decides_once_leaves_nothing_behind(case: str, name: str) -> None:
    risk = CASES[case].risk()
    with AllocationTracker() as ledger:
        decided(risk, name)
    assert ledger.peak > 0
    gc.collect()
    assert ledger.alive == 0


def test_operators_at_one_theta_share_a_copy_of_it() -> None:
    case = CASES["conv"]
    risk, theta = case.risk(), case.theta.clone()
    hessian, covariance = risk.hessian(theta), risk.noise_covariance(theta, 2)
    assert hessian.theta is covariance.theta is risk.gauss_newton(theta).theta
    direction = torch.ones_like(theta)
    expected = hessian @ direction
    theta += 1
    assert_close(hessian @ direction, expected, rtol=0, atol=0)
    elsewhere = risk.hessian(theta)
    assert elsewhere.theta is not hessian.theta
    assert_close(elsewhere @ direction, case.risk().hessian(theta) @ direction, rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(risk))  # once used
    assert_close(again.hessian(case.theta) @ direction, expected, rtol=0, atol=0)
