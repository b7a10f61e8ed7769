"""Where a figure is not defined it is not finite, and bad arguments are named."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import F64, Case, normal
from dense_indicators import CURVATURE, FIGURES, HERE
from networks import X, Y, network
from noisescape.risk.passes import dense_hessian
from noisescape.runs.run import strict_json
from noisescape.theory.landscapes import quadratic


def no_noise() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(CURVATURE, torch.zeros(4, 6, dtype=F64)), 2, True


def whole_batch() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(CURVATURE, normal(4, 6, seed=1)), 4, False


def single_sample() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(CURVATURE, normal(1, 6, seed=1)), 1, False


def no_curvature() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(torch.zeros(6, 6, dtype=F64), normal(5, 6, seed=1)), 2, True


def saddle() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(torch.diag(torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=F64)), normal(5, 6, seed=1)), 2, True


LIMITING = [no_noise, whole_batch, single_sample, no_curvature, saddle]


@pytest.mark.parametrize("theta", [HERE, torch.zeros(6, dtype=F64)], ids=["elsewhere", "minimum"])
@pytest.mark.parametrize("limit", LIMITING)
def test_what_is_not_defined_is_not_finite_and_the_rest_stands(limit: object, theta: Tensor) -> None:
    risk, batch_size, replacement = limit()
    found = ns.measure(risk, theta, batch_size=batch_size, replacement=replacement)
    assert all(math.isfinite(found.estimates()[name].value) for name in FIGURES[:6])
    if limit in (no_noise, whole_batch, single_sample):
        assert found.trace_sigma.value == found.trace_h_sigma.value == 0
    if limit is whole_batch:  # no noise is left, but its shape is known
        c = ns.measure(risk, theta, batch_size=1)
        for name in ("anisotropy", "projection_coefficient", "alignment", "noise_scale"):
            assert found.estimates()[name] == c.estimates()[name]
            assert math.isfinite(found.estimates()[name].value) or name == "noise_scale"
    elif limit in (no_noise, single_sample):
        assert math.isnan(found.anisotropy.value)
        assert math.isnan(found.projection_coefficient.value)
        assert found.upper_bound.value == pytest.approx(6 * 5 / 8.35, rel=1e-9)
    elif limit is no_curvature:
        assert found.trace_h.value == found.trace_h_sigma.value == 0
        assert not math.isfinite(found.upper_bound.value)
    else:
        assert found.trace_h.value == 0
        assert not math.isfinite(found.upper_bound.value)
        assert found.decay_exponent.value == math.inf
    assert str(found)
    json.loads(strict_json(found.to_dict()), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 12, "replacement": False}, "exceeds the 11 samples"),
        ({"batch_size": 3, "k": 0}, "k must be at least 1, not 0"),
        ({"batch_size": 3, "rtol": 0.0}, "rtol must be positive, not 0.0"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str, mlp: Case) -> None:
    with pytest.raises(ValueError, match=message):
        ns.measure(mlp.risk(), mlp.theta, **options)


def test_replicas_are_refused(mlp: Case) -> None:
    with pytest.raises(ValueError, match=r"θ must have shape \(31,\)"):
        ns.measure(mlp.risk(), mlp.theta.expand(2, -1), batch_size=3)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_sample(mlp: Case) -> None:
    inputs = mlp.inputs.clone()
    inputs[4] = math.nan
    risk = mlp.risk().with_data((inputs, mlp.targets))
    with pytest.raises(ns.NonFiniteLossError, match="sample 4"):
        ns.measure(risk, mlp.theta, batch_size=3)


def test_probes_end_where_they_may_cost_no_more_and_the_errors_say_how_far_they_got() -> None:
    risk = ns.EmpiricalRisk(network(), torch.nn.functional.cross_entropy, (X, Y))
    with pytest.warns(ns.linops.ToleranceWarning):
        found = ns.measure(risk, risk.parameters(), batch_size=3, k=2, rtol=1e-9, max_products=40, progress=False)
    for figure in (found.trace_h, found.trace_h_sigma):
        assert 0 < figure.cost <= 40
        assert figure.relative_stderr > 1e-9
    exact = float(dense_hessian(risk, risk.parameters()).trace())
    assert abs(found.trace_h.value - exact) <= 5 * found.trace_h.stderr
