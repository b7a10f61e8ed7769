"""What an estimate claims: Student's intervals, scaling, quotients, relative errors."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from cases import F64
from matrices import MIXED
from noisescape.linops import DenseOperator, Estimate, VectorEstimate, eigenpairs, ratio

numbers = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6)
errors = st.floats(1e-6, 1e3)
levels = st.floats(0.01, 0.999)


@given(value=numbers, stderr=errors, level=levels, dof=st.integers(1, 500) | st.just(math.inf))
@settings(deadline=None, derandomize=True)
def test_interval_is_students(value: float, stderr: float, level: float, dof: float) -> None:
    law = stats.norm(value, stderr) if math.isinf(dof) else stats.t(dof, value, stderr)
    assert Estimate(value, stderr, dof=dof).interval(level) == pytest.approx(
        law.interval(level), rel=1e-9, abs=1e-12
    )


@given(value=numbers, stderr=errors, factor=numbers, dof=st.integers(1, 500))
@settings(deadline=None, derandomize=True)
def test_scaling_an_estimate_scales_its_interval(value: float, stderr: float, factor: float, dof: int) -> None:
    estimate = Estimate(value, stderr, 5, dof)
    scaled = estimate.scaled(factor)
    expected = sorted(end * factor for end in estimate.interval())
    assert scaled.interval() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (scaled.cost, scaled.dof) == (5, dof)
    assert scaled.relative_stderr == pytest.approx(estimate.relative_stderr)


def test_ratio_has_the_spread_of_simulated_quotients() -> None:
    top, bottom = Estimate(3.0, 0.03, 10, 30), Estimate(-2.0, 0.05, 7, 12)
    found = ratio(top, bottom)
    rng = np.random.default_rng(1)
    quotients = rng.normal(3.0, 0.03, 400_000) / rng.normal(-2.0, 0.05, 400_000)
    assert found.value == pytest.approx(-1.5)
    assert found.stderr == pytest.approx(quotients.std(), rel=0.02)
    assert (found.cost, found.dof) == (17, 12)


def test_ratio_by_an_exact_number_is_scaling() -> None:
    top = Estimate(3.0, 0.3, 10, 30)
    assert ratio(top, Estimate(-2.0, 0.0)) == Estimate(-1.5, 0.15, 10, 30)


def test_ratio_by_zero_is_not_a_number() -> None:
    found = ratio(Estimate(3.0, 0.3), Estimate(0.0, 0.1))
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)


def test_results_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Estimate(1.0, 0.1).value = 2.0
    with pytest.raises(FrozenInstanceError):
        eigenpairs(DenseOperator(MIXED), 1).cost = 0


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(2.0, 0.0), 0.0),
        (Estimate(-2.0, 0.1), 0.05),
        (Estimate(0.0, 0.1), math.inf),
        (VectorEstimate(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])), 0.1),
        (VectorEstimate(torch.zeros(2), torch.zeros(2)), 0.0),
        (VectorEstimate(torch.zeros(2), torch.ones(2)), math.inf),
    ],
)
def test_relative_standard_error(estimate: Estimate | VectorEstimate, expected: float) -> None:
    assert estimate.relative_stderr == pytest.approx(expected)


def test_vector_intervals_are_students_entry_by_entry() -> None:
    value, stderr = torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([0.1, 0.0], dtype=F64)
    low, high = VectorEstimate(value, stderr, dof=7).interval(0.9)
    half = stats.t.ppf(0.95, 7) * 0.1
    assert_close(low, torch.tensor([1 - half, -2.0], dtype=F64))
    assert_close(high, torch.tensor([1 + half, -2.0], dtype=F64))
