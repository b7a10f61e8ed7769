"""Traces of a network's matrices match dense autograd, and cost what the noise's rank allows."""

from __future__ import annotations

import pytest

from cases import CASES
from noisescape.linops import product_trace, trace

CORE = {
    "trace of the Hessian": lambda risk, theta, seed: trace(risk.hessian(theta), deflate=4, rtol=0.03, seed=seed),
    "Tr(HΣ)": lambda risk, theta, seed: product_trace(
        risk.hessian(theta), risk.noise_covariance(theta, 3), deflate=3, rtol=0.03, seed=seed
    ),
    "Tr(HΣ), streamed": lambda risk, theta, seed: product_trace(
        risk.hessian(theta),
        type(risk).noise_covariance(_tight(risk), theta, 3),
        deflate=3,
        rtol=0.03,
        seed=seed,
    ),
    "Tr(FΣ)": lambda risk, theta, seed: product_trace(
        risk.fisher(theta), risk.noise_covariance(theta, 3), deflate=3, rtol=0.03, seed=seed
    ),
    "Tr(HF)": lambda risk, theta, seed: product_trace(
        risk.hessian(theta), risk.fisher(theta), deflate=3, rtol=0.03, seed=seed
    ),
}


def _tight(risk):
    return CASES["conv"].risk(memory_budget=3_000)


@pytest.mark.parametrize("name", CORE)
@pytest.mark.usefixtures("by_probes")
def test_traces_of_a_networks_matrices_match_dense_autograd(name: str) -> None:
    case = CASES["conv"]
    dense = {"H": case.hessian(), "F": case.gauss_newton(), "Σ": case.covariance() / 3}
    exact = {
        "trace of the Hessian": dense["H"].trace(),
        "Tr(HΣ)": (dense["H"] * dense["Σ"]).sum(),
        "Tr(HΣ), streamed": (dense["H"] * dense["Σ"]).sum(),
        "Tr(FΣ)": (dense["F"] * dense["Σ"]).sum(),
        "Tr(HF)": (dense["H"] * dense["F"]).sum(),
    }[name]
    estimate = CORE[name](case.risk(), case.theta, 2)
    assert 0 < estimate.relative_stderr <= 0.03
    assert abs(estimate.value - float(exact)) <= 4 * estimate.stderr


def test_product_trace_with_a_covariance_of_low_rank_is_exact_and_costs_its_rank() -> None:
    case = CASES["conv"]
    estimate = product_trace(
        case.risk().hessian(case.theta), case.risk().noise_covariance(case.theta, 3), deflate=20
    )
    exact = float((case.hessian() * case.covariance()).sum()) / 3
    assert (estimate.stderr, estimate.cost) == (0, case.count - 1)
    assert estimate.value == pytest.approx(exact, rel=1e-9)


def test_product_trace_with_no_noise_at_all_is_zero() -> None:
    """Identical samples: the covariance has rank nought."""
    case = CASES["conv"]
    image, label = case.inputs[:1].repeat(4, 1, 1, 1), case.targets[:1].repeat(4)
    risk = case.risk().with_data((image, label))
    for replacement, batch_size in ((True, 2), (False, 4)):
        covariance = risk.noise_covariance(case.theta, batch_size, replacement=replacement)
        estimate = product_trace(risk.hessian(case.theta), covariance, deflate=8)
        assert abs(estimate.value) < 1e-25
        assert estimate.stderr < 1e-25
        assert trace(covariance, deflate=2).value == pytest.approx(0, abs=1e-25)
