"""Measurements and estimates: exact figures are those of the CPU to rounding, others to their error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import noisescape as ns
from networks import X, Y, network


def risk_on(device: str) -> ns.EmpiricalRisk:
    return ns.EmpiricalRisk(network().to(device), nn.functional.cross_entropy, (X.to(device), Y.to(device)))


EXACT = ("loss", "gradient_norm", "trace_sigma")


@pytest.mark.parametrize("measure", [ns.measure, ns.measure_fast])
def test_measurements(measure, device: str) -> None:
    here, there = risk_on("cpu"), risk_on(device)
    wanted = measure(here, here.parameters(), batch_size=3).estimates()
    found = measure(there, there.parameters(), batch_size=3).estimates()
    assert found.keys() == wanted.keys()
    for name, estimate in found.items():
        other = wanted[name]
        if name in EXACT:
            assert estimate.value == pytest.approx(other.value, rel=1e-6), name
        elif math.isfinite(other.value) and math.isfinite(other.stderr):
            error = math.hypot(estimate.stderr, other.stderr)
            assert abs(estimate.value - other.value) <= 6 * error + 1e-6 * abs(other.value), name


def test_spectrum_and_sharpness(device: str) -> None:
    here, there = risk_on("cpu"), risk_on(device)
    theta, point = here.parameters(), there.parameters()
    dense = here.hessian(theta).dense()
    pairs = ns.eigenpairs(there.hessian(point), 3)
    torch.testing.assert_close(pairs.values.cpu(), torch.linalg.eigvalsh(dense).flip(0)[:3], rtol=1e-4, atol=1e-6)
    density = ns.spectral_density(there.hessian(point), steps=20, probes=4)
    assert bool(torch.as_tensor(density.density).isfinite().all())
    sharpness = [
        ns.expected_sharpness(risk, where, delta=0.01, draws=400) for risk, where in ((here, theta), (there, point))
    ]
    one, other = (each.signed for each in sharpness)
    assert abs(one.value - other.value) <= 6 * math.hypot(one.stderr, other.stderr)


def test_budget_alignment_and_comparison(device: str) -> None:
    here, there = risk_on("cpu"), risk_on(device)
    for call in (
        lambda risk: ns.loss_budget(risk, risk.parameters(), lr=0.05, batch_size=3),
        lambda risk: ns.relative_alignment(risk, risk.parameters()),
        lambda risk: ns.compare_noise_and_curvature(risk, risk.parameters()),
    ):
        one, other = call(here), call(there)
        assert type(one) is type(other)
        assert repr(one).split("(")[0] == repr(other).split("(")[0]


def test_the_models_own_tensors_stay_where_they_are(device: str) -> None:
    model = network().to(device)
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, (X.to(device), Y.to(device)))
    ns.measure(risk, risk.parameters(), batch_size=3)
    ns.simulate(risk, ns.SGD(3), risk.parameters(), lr=0.1, steps=10, progress=False)
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
