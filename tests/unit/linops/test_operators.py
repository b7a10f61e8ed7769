"""Every operator against a dense matrix summed up by hand: products, parts, diagonal, trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cases import F64, close, normal
from noisescape.linops import DenseOperator, LowRankOperator
from noisescape.risk.gradient_covariance import GradientOuterProduct
from operator_matrix import FACTOR, MATRIX, MLP, PSD, N, each_operator, each_psd, matrix_of
from slowness import quick


@each_operator
def test_product_with_a_vector(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    vector = normal(len(matrix), seed=5)
    close(operator @ vector, matrix @ vector)
    assert operator.products == 1


@each_operator
def test_product_with_a_block_of_columns(name: str) -> None:
    """More columns than are differentiated along together."""
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    block = normal(len(matrix), 18, seed=5)
    close(operator @ block, matrix @ block)
    assert operator.products == 18


@each_operator
def test_product_with_a_block_of_no_columns(name: str) -> None:
    operator = MATRIX[name].build()
    assert (operator @ torch.zeros(operator.size, 0, dtype=F64)).shape == (operator.size, 0)


@each_operator
@pytest.mark.parametrize("columns", quick([0, 18], [1]))
def test_quadratic_forms_are_those_of_the_matrix(name: str, columns: int) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    block = normal(len(matrix), columns, seed=5)
    found, expected = operator.quadratic_forms(block), (block * (matrix @ block)).sum(0)
    assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(matrix.abs().max()))
    assert operator.products == columns


@each_psd
@pytest.mark.parametrize("k", [0, 1, 4, 8, N, N + 3])
def test_parts_of_a_split_add_up_to_the_matrix(name: str, k: int) -> None:
    """A = CCᵀ + RRᵀ, R read off the unit vectors; with all there is in C nothing is left."""
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    parts = operator.split(k)
    if parts is None:
        assert not operator.factored
        assert not isinstance(operator, (GradientOuterProduct, LowRankOperator))
        return
    assert operator.factored
    columns = parts.columns()
    assert columns.shape == (len(matrix), parts.carried.shape[1])
    assert columns.shape[1] <= k
    assert_close(parts.columns(slice(1, 3)), columns[:, 1:3], rtol=1e-12, atol=1e-12)
    root = parts.rest(torch.eye(len(parts.carried), dtype=F64))
    close(columns @ columns.T + root @ root.T, matrix)
    if k >= N:
        assert parts.exhausted
    if parts.exhausted:
        close(columns @ columns.T, matrix)


def test_a_split_of_held_gradients_carries_the_leading_directions() -> None:
    operator, matrix = MATRIX["noise covariance, with replacement"].build(), MLP.covariance() / 3
    carried = float(operator.split(3).columns().square().sum())
    assert carried == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-3:].sum()), rel=1e-9)


@each_operator
def test_dense_matrix_is_right_and_exactly_symmetric(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    dense = operator.dense()
    close(dense, matrix)
    assert torch.equal(dense, dense.T)
    assert operator.shape == tuple(matrix.shape)
    assert operator.psd is MATRIX[name].psd


@each_operator
def test_products_are_symmetric(name: str) -> None:
    operator = MATRIX[name].build()
    u, v = normal(2, operator.size, seed=6)
    assert float(u @ (operator @ v)) == pytest.approx(float(v @ (operator @ u)), rel=1e-9, abs=1e-12)


@each_operator
@pytest.mark.parametrize(
    "used_before", quick([pytest.param(False, id="fresh")], [pytest.param(True, id="after a product")])
)
def test_diagonal_and_trace_are_exact(name: str, used_before: bool) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    if used_before:
        operator @ normal(operator.size, seed=1)
    close(operator.diagonal(), matrix.diagonal())
    close(operator.trace(), matrix.trace())


@each_operator
def test_scipy_linear_operator_multiplies_alike(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name).numpy()
    linear = operator.to_scipy()
    block = normal(len(matrix), 3, seed=7).numpy()
    fortran = np.asfortranarray(block)
    fortran.flags.writeable = False
    rtol, atol = 1e-9, 1e-9 * np.abs(matrix).max()
    assert linear.dtype == np.float64
    np.testing.assert_allclose(linear.matvec(block[:, 0]), matrix @ block[:, 0], rtol, atol)
    np.testing.assert_allclose(linear.rmatvec(block[:, 0]), matrix @ block[:, 0], rtol, atol)
    np.testing.assert_allclose(linear.matmat(fortran), matrix @ block, rtol, atol)
    np.testing.assert_allclose(linear @ block[:, :1], matrix @ block[:, :1], rtol, atol)


def test_products_are_counted_in_every_operand() -> None:
    left, right = DenseOperator(PSD, psd=True), LowRankOperator(FACTOR)
    total = 2 * left + right
    total @ normal(9, 4, seed=1)
    assert (left.products, right.products, total.products) == (4, 4, 4)


def test_repr_names_the_operator_its_size_and_its_kind() -> None:
    assert repr(LowRankOperator(FACTOR)) == "low-rank(9 × 9, PSD, torch.float64, cpu)"
