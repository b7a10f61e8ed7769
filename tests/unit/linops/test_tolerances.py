"""A tolerance is met without great waste, a budget kept, a cost counted, a shortfall warned of."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from cases import F64, CountedOperator
from matrices import MIXED, OTHER, PSD, SIZE, SPREAD
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    SymmetricOperator,
    ToleranceWarning,
    diagonal,
    product_trace,
    squared_norm,
    trace,
)
from noisescape.linops.probing import mean_of_probes

ESTIMATORS = {
    "trace": lambda **options: trace(DenseOperator(MIXED), deflate=2, **options),
    "squared norm": lambda **options: squared_norm(DenseOperator(MIXED), deflate=2, **options),
    "diagonal": lambda **options: diagonal(DenseOperator(MIXED), **options),
    "product trace by signs": lambda **options: product_trace(
        DenseOperator(MIXED), DenseOperator(OTHER), deflate=2, **options
    ),
    "product trace by draws": lambda **options: product_trace(
        DenseOperator(MIXED), DiagonalOperator(SPREAD), deflate=2, **options
    ),
}
each_estimator = pytest.mark.parametrize("name", ESTIMATORS)


@each_estimator
@pytest.mark.parametrize("rtol", [0.2, 0.05, 0.02])
@pytest.mark.usefixtures("by_probes")
def test_requested_tolerance_is_met_without_great_waste(name: str, rtol: float) -> None:
    estimate = ESTIMATORS[name](rtol=rtol, max_products=100_000, seed=3)
    assert estimate.relative_stderr <= rtol
    if estimate.dof > 40:  # beyond the first stage
        assert estimate.relative_stderr > 0.4 * rtol


@each_estimator
@pytest.mark.parametrize("budget", [4, 30, 50, 67])
@pytest.mark.usefixtures("by_probes")
def test_a_budget_too_small_warns_and_is_kept(name: str, budget: int) -> None:
    with pytest.warns(ToleranceWarning, match=r"1e-06 was asked for; allow more with max_products"):
        estimate = ESTIMATORS[name](rtol=1e-6, max_products=budget)
    assert estimate.cost <= budget
    assert estimate.relative_stderr > 1e-6


def test_warning_points_at_the_callers_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(DenseOperator(MIXED), deflate=2, rtol=1e-6, max_products=40)
    assert [w.filename for w in caught] == [__file__]


@each_estimator
@pytest.mark.usefixtures("by_probes")
def test_cost_counts_the_products_spent(name: str) -> None:
    left, right = CountedOperator(MIXED), CountedOperator(OTHER)
    estimate = {
        "trace": lambda: trace(left, deflate=2, rtol=0.05),
        "squared norm": lambda: squared_norm(left, deflate=2, rtol=0.05),
        "diagonal": lambda: diagonal(left, rtol=0.2),
        "product trace by signs": lambda: product_trace(left, right, deflate=2, rtol=0.05),
        "product trace by draws": lambda: product_trace(left, DiagonalOperator(SPREAD), deflate=2, rtol=0.05),
    }[name]()
    own_of_the_diagonal = 2 * 2 if name == "product trace by draws" else 0
    assert estimate.cost == sum(left.columns + right.columns) + own_of_the_diagonal


@pytest.mark.parametrize(
    "right",
    [
        2 * DenseOperator(PSD, psd=True),
        DenseOperator(PSD, psd=True) + DiagonalOperator(SPREAD),
        FunctionOperator(lambda block: PSD @ block, SIZE, dtype=F64, device="cpu", psd=True),
    ],
    ids=["scaled", "sum", "function without a sampler"],
)
@pytest.mark.usefixtures("by_probes")
def test_product_trace_never_factors_a_dense_matrix_in_secret(right: SymmetricOperator, monkeypatch) -> None:
    """Draws are only cheap where the structure gives them."""

    def refuse(self) -> Tensor:
        raise AssertionError("formed a dense matrix")

    for cls in (SymmetricOperator, DenseOperator):
        monkeypatch.setattr(cls, "dense", refuse)
    estimate = product_trace(DenseOperator(MIXED), right, deflate=2, rtol=0.1)
    assert estimate.stderr > 0


def test_mean_of_probes_that_cancel_exactly_warns_instead_of_failing() -> None:
    with pytest.warns(ToleranceWarning, match=r"x: relative standard error"):
        found = mean_of_probes(
            lambda m: torch.tensor([1.0, -1.0]).repeat(m)[:m],
            offset=torch.tensor(0.0),
            rtol=0.1,
            max_probes=16,
            what="x",
        )
    assert (float(found.mean), found.probes) == (0.0, 16)


def test_probes_without_spread_stop_at_once() -> None:
    """Signs see a diagonal matrix's trace exactly."""
    estimate = trace(DiagonalOperator(SPREAD), deflate=0, rtol=1e-12)
    assert estimate.cost <= 48
    assert estimate.value == pytest.approx(float(SPREAD.sum()), rel=1e-12)


def test_a_matrix_of_nan_yields_nan_rather_than_an_endless_search() -> None:
    operator = FunctionOperator(lambda block: block * math.nan, SIZE, dtype=F64, device="cpu")
    assert math.isnan(trace(operator, deflate=0).value)
