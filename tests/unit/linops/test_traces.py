"""Traces, norms and diagonals are exact where they say so, else within their error and their tolerance."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from cases import F64
from matrices import MIXED, SIZE, SQUARE
from noisescape.linops import (
    DenseOperator,
    ToleranceWarning,
    diagonal,
    eigenpairs,
    product_trace,
    squared_norm,
    trace,
    trace_and_squared_norm,
)
from noisescape.linops.probing import FIRST_STAGE

PAIRS = [(left, right) for left in SQUARE for right in SQUARE if left <= right]


def exact_product_trace(left: str, right: str) -> float:
    return float(torch.trace(SQUARE[left]().dense() @ SQUARE[right]().dense()))


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize("swapped", [False, True], ids=["AB", "BA"])
def test_product_trace_is_exact_where_it_says_so(left: str, right: str, swapped: bool) -> None:
    operands = SQUARE[right](), SQUARE[left]()
    estimate = product_trace(*(operands[::-1] if swapped else operands), deflate=SIZE - FIRST_STAGE)
    assert estimate.stderr == 0
    assert estimate.value == pytest.approx(exact_product_trace(left, right), rel=1e-9)


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize("deflate", [2, 8])
@pytest.mark.usefixtures("by_probes")
def test_product_trace_is_within_its_error_and_meets_its_tolerance(left: str, right: str, deflate: int) -> None:
    estimate = product_trace(SQUARE[left](), SQUARE[right](), deflate=deflate, rtol=0.02, seed=5)
    exact = exact_product_trace(left, right)
    assert estimate.relative_stderr <= 0.02
    assert abs(estimate.value - exact) <= 4 * estimate.stderr + 1e-9 * abs(exact)


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("deflate", [0, 1, 10])
@pytest.mark.usefixtures("by_probes")
def test_trace_is_within_its_error_and_meets_its_tolerance(name: str, deflate: int) -> None:
    operator = SQUARE[name]()
    estimate = trace(operator, deflate=deflate, rtol=0.02, seed=5)
    exact = float(torch.trace(operator.dense()))
    assert estimate.relative_stderr <= 0.02
    assert abs(estimate.value - exact) <= 4 * estimate.stderr + 1e-9 * abs(exact)


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("deflate", [0, 10])
@pytest.mark.usefixtures("by_probes")
def test_squared_norm_is_within_its_error_and_meets_its_tolerance(name: str, deflate: int) -> None:
    operator = SQUARE[name]()
    estimate = squared_norm(operator, deflate=deflate, rtol=0.02, seed=5)
    exact = float(operator.dense().square().sum())
    assert estimate.relative_stderr <= 0.02
    assert abs(estimate.value - exact) <= 4 * estimate.stderr + 1e-9 * abs(exact)


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize(("rtol", "norm_rtol"), [(0.02, 0.1), (0.1, 0.02)])
@pytest.mark.usefixtures("by_probes")
def test_trace_and_norm_of_the_same_probes_are_each_to_their_tolerance(
    name: str, rtol: float, norm_rtol: float
) -> None:
    operator = SQUARE[name]()
    both = trace_and_squared_norm(operator, rtol=rtol, norm_rtol=norm_rtol, deflate=4, seed=5)
    spent = operator.products
    exact = float(torch.trace(operator.dense())), float(operator.dense().square().sum())
    for estimate, value, tolerance in zip(both, exact, (rtol, norm_rtol), strict=True):
        assert estimate.relative_stderr <= tolerance
        assert abs(estimate.value - value) <= 5 * estimate.stderr + 1e-9 * abs(value)
        assert estimate.cost == spent
    alone = (
        trace(SQUARE[name](), rtol=rtol, deflate=4, seed=5),
        squared_norm(SQUARE[name](), rtol=norm_rtol, deflate=4, seed=5),
    )
    assert spent == max(one.cost for one in alone)  # what one has drawn the other does not draw again
    assert both[0].value == pytest.approx(alone[0].value, rel=1e-12)
    assert both[1].value == pytest.approx(alone[1].value, rel=1e-12)


def test_trace_and_norm_are_exact_where_each_is() -> None:
    matrix = DenseOperator(MIXED[:14, :14])
    found = trace_and_squared_norm(matrix)
    assert [(one.stderr, one.cost) for one in found] == [(0, 14), (0, 14)]
    assert found[0].value == pytest.approx(float(MIXED[:14, :14].trace()), rel=1e-9)
    assert found[1].value == pytest.approx(float(MIXED[:14, :14].square().sum()), rel=1e-9)
    whole = trace_and_squared_norm(DenseOperator(MIXED), rtol=1e-3, norm_rtol=0.5, deflate=4)
    assert [(one.stderr, one.cost) for one in whole] == [(0, 8 + FIRST_STAGE + SIZE)] * 2
    assert whole[1].value == pytest.approx(float(MIXED.square().sum()), rel=1e-9)


def test_trace_and_norm_stay_within_the_budget() -> None:
    operator = DenseOperator(MIXED)
    with pytest.warns(ToleranceWarning):
        both = trace_and_squared_norm(operator, rtol=1e-3, norm_rtol=1e-3, deflate=2, max_products=40)
    assert operator.products <= 40
    assert all(estimate.stderr > 0 for estimate in both)


@pytest.mark.parametrize("name", SQUARE)
def test_traces_of_small_matrices_are_exact(name: str) -> None:
    matrix = SQUARE[name]().dense()[:14, :14]
    operator = DenseOperator(matrix)
    for estimate, expected in (
        (trace(operator), matrix.trace()),
        (squared_norm(operator), matrix.square().sum()),
    ):
        assert (estimate.stderr, estimate.cost) == (0, 14)
        assert estimate.value == pytest.approx(float(expected), rel=1e-9)
        assert estimate.interval() == (estimate.value, estimate.value)


@pytest.mark.usefixtures("by_probes")
def test_trace_takes_given_directions_to_deflate() -> None:
    operator = DenseOperator(MIXED)
    top = eigenpairs(operator, 6, which="magnitude").vectors
    given, none = (trace(operator, deflate=basis, rtol=0.02, seed=1) for basis in (top, 0))
    assert given.cost < none.cost
    assert abs(given.value - float(MIXED.trace())) <= 4 * given.stderr


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.usefixtures("by_probes")
def test_diagonal_is_within_its_error_entry_by_entry(name: str) -> None:
    operator = SQUARE[name]()
    estimate = diagonal(operator, rtol=0.05, seed=5)
    exact = operator.dense().diagonal()
    assert estimate.relative_stderr <= 0.05
    excess = (estimate.value - exact).abs() - stats.t.isf(1e-5 / SIZE, estimate.dof) * estimate.stderr
    assert float(excess.max()) <= 1e-9


@pytest.mark.parametrize("name", ["indefinite", "other indefinite", "PSD", "PSD of higher rank", "sum"])
def test_where_probes_would_cost_as_much_the_sum_is_taken_over_all_coordinates(name: str) -> None:
    """To 1 in a thousand, which takes more probes than there are coordinates."""
    matrix, other = SQUARE[name]().dense(), MIXED
    top = eigenpairs(DenseOperator(matrix), 6, which="magnitude").vectors
    products = 2 * SIZE
    for estimate, exact, cost in (
        (trace(DenseOperator(matrix), deflate=top, rtol=1e-3), matrix.trace(), 6 + FIRST_STAGE + SIZE),
        (trace(DenseOperator(matrix), deflate=4, rtol=1e-3), matrix.trace(), 8 + FIRST_STAGE + SIZE),
        (squared_norm(DenseOperator(matrix), deflate=4, rtol=1e-3), matrix.square().sum(), 8 + FIRST_STAGE + SIZE),
        (
            product_trace(DenseOperator(matrix), DenseOperator(other), deflate=0, rtol=1e-3),
            (matrix * other).sum(),
            2 * FIRST_STAGE + products,
        ),
    ):
        assert (estimate.stderr, estimate.cost) == (0, cost)
        assert estimate.value == pytest.approx(float(exact), rel=1e-9)
    found = diagonal(DenseOperator(matrix), rtol=1e-3)
    assert (float(found.stderr.max()), found.cost) == (0, FIRST_STAGE + SIZE)
    assert_close(found.value, matrix.diagonal(), rtol=1e-9, atol=1e-12)


def test_a_budget_that_the_exact_value_exceeds_is_spent_on_probes() -> None:
    with pytest.warns(ToleranceWarning):
        estimate = trace(DenseOperator(MIXED), deflate=2, rtol=1e-3, max_products=SIZE)
    assert estimate.stderr > 0
    assert estimate.cost <= SIZE


def test_diagonal_of_a_small_matrix_is_exact() -> None:
    estimate = diagonal(DenseOperator(MIXED[:16, :16]))
    assert_close(estimate.value, MIXED[:16, :16].diagonal(), rtol=1e-12, atol=0)
    assert torch.equal(estimate.stderr, torch.zeros(16, dtype=F64))
