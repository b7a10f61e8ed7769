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
from noisescape.linops import DenseOperator, Estimate, VectorEstimate, eigenpairs, ratio, square_root

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


def test_ratio_by_a_well_known_number_has_the_spread_of_simulated_quotients() -> None:
    top, bottom = Estimate(3.0, 0.03, 10, 30), Estimate(-2.0, 0.01, 7, 12)
    found = ratio(top, bottom)
    rng = np.random.default_rng(1)
    quotients = rng.normal(3.0, 0.03, 400_000) / rng.normal(-2.0, 0.01, 400_000)
    assert found.value == pytest.approx(-1.5)
    assert found.stderr == pytest.approx(quotients.std(), rel=0.02)
    assert (found.cost, found.dof) == (17, 12)


@given(top=numbers, bottom=numbers, shares=st.tuples(*[st.floats(1e-3, 1.0)] * 2), dof=st.integers(1, 500))
@settings(deadline=None, derandomize=True)
def test_ratio_reaches_the_farther_end_of_fiellers_interval(
    top: float, bottom: float, shares: tuple[float, float], dof: int
) -> None:
    """All r with (n − rd)² ≤ q²(σ_n² + r²σ_d²): where those are no interval, any quotient may be."""
    top_error, bottom_error = shares[0] * abs(top), shares[1] * abs(bottom)
    found = ratio(Estimate(top, top_error, dof=dof), Estimate(bottom, bottom_error, dof=dof))
    q = stats.t.ppf(0.975, dof)
    square = bottom**2 - (q * bottom_error) ** 2
    if square <= 1e-6 * bottom**2:
        assert found.stderr > 1e2 * abs(found.value)
        return
    discriminant = (top * bottom) ** 2 - square * (top**2 - (q * top_error) ** 2)
    ends = [(top * bottom + sign * math.sqrt(max(0.0, discriminant))) / square for sign in (-1, 1)]
    farther = max(abs(end - top / bottom) for end in ends)
    assert found.interval()[1] - found.value == pytest.approx(farther, rel=1e-4)


def test_a_quotient_whose_denominator_may_be_zero_may_be_anything() -> None:
    found = ratio(Estimate(3.0, 0.1), Estimate(1.0, 0.6))
    assert (found.value, found.stderr) == (3.0, math.inf)
    assert found.interval() == (-math.inf, math.inf)


@given(value=st.floats(0, 1e6), stderr=errors, dof=st.integers(1, 500))
@settings(deadline=None, derandomize=True)
def test_a_roots_interval_holds_the_roots_of_the_ends(value: float, stderr: float, dof: int) -> None:
    squared = Estimate(value, stderr, dof=dof)
    low, high = square_root(squared).interval()
    below, above = squared.interval()
    slack = 1e-9 * (1 + math.sqrt(above))
    assert low <= math.sqrt(max(below, 0.0)) + slack
    assert math.sqrt(above) <= high + slack


def test_a_root_is_exact_where_the_square_is_and_has_the_delta_methods_error_where_that_is_known_well() -> None:
    assert square_root(Estimate(9.0, 0.0, 5)) == Estimate(3.0, 0.0, 5)
    assert square_root(Estimate(9.0, 1e-4, dof=7)).stderr == pytest.approx(1e-4 / 6, rel=1e-4)
    assert math.isnan(square_root(Estimate(-1.0, 0.1)).value)


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
