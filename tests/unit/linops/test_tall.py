"""Sums of millions of numbers in single precision, against the same in double."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import noisescape as ns
from noisescape.linops import DiagonalOperator, LowRankOperator
from noisescape.linops.lanczos import gauss_quadratures
from noisescape.linops.tall import (
    LONGEST,
    inner_product,
    inner_products,
    left_singular,
    lengths,
    orthonormal,
    project_out,
)
from noisescape.risk.factored_gradients import FactoredGradients

LONG = 6_000_000
"""So many squares, added up one by one in single precision, are a hundredth off at the worst."""
SIZES = [5, LONGEST, LONGEST + 1, LONG]


def columns(size: int, count: int, seed: int = 0) -> Tensor:
    return torch.randn(size, count, generator=torch.Generator().manual_seed(seed))


def test_single_precision_is_not_enough_for_such_sums() -> None:
    """Or none of this were needed."""
    block = columns(LONG, 1)
    exact = float(block.double().square().sum())
    assert abs(float(block.mT @ block) / exact - 1) > 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_inner_products_are_those_in_double_precision(size: int, count: int) -> None:
    block = columns(size, count) + 0.1
    rows = block.mT.contiguous()
    exact = rows.double() @ block.double()
    assert_close(inner_products(rows, block).double(), exact, rtol=2e-5, atol=1e-6 * float(exact.max()))
    assert_close(inner_product(block[:, 0], rows[0]).double(), exact[0, 0], rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_those_of_replicas_have_their_shape(dtype: torch.dtype) -> None:
    rows = columns(6 * (LONGEST + 7), 1).view(2, 3, LONGEST + 7).to(dtype)
    found = inner_products(rows, rows.mT)
    assert (found.shape, found.dtype) == ((2, 3, 3), dtype)
    exact = rows.double() @ rows.double().mT
    assert_close(found.double(), exact, rtol=2e-5, atol=1e-6 * float(exact.max()))


@pytest.mark.parametrize("size", SIZES)
def test_lengths_are_those_in_double_precision(size: int) -> None:
    block = columns(size, 2)
    exact = block.double().square().sum(0).sqrt()
    for found in (
        lengths(block, dim=0),
        lengths(block.mT.contiguous()),
        lengths(block.bfloat16(), 0, dtype=torch.float32),
    ):
        assert_close(found.double(), exact, rtol=2e-3, atol=0)
    for found in (lengths(block, dim=0), lengths(block.mT.contiguous())):
        assert_close(found.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_a_basis_is_orthonormal_and_spans_the_columns(size: int) -> None:
    block = columns(size, 4) @ torch.tensor([[1.0, 2, 0, 0], [0, 1, 1e-2, 0], [0, 0, 1e-3, 5], [0, 0, 0, 1]])
    basis = orthonormal(block).double()
    assert_close(basis.mT @ basis, torch.eye(4).double(), rtol=0, atol=2e-6)
    left = block.double() - basis @ (basis.mT @ block.double())
    assert float(left.norm()) < 1e-2 * float(block.double().norm())
    assert float(project_out(basis.float(), block).norm()) < 1e-2 * float(block.norm())


def test_a_basis_of_equal_columns_and_of_what_is_not_a_number() -> None:
    same = columns(LONGEST + 1, 1).expand(-1, 3)
    basis = orthonormal(same).double()
    assert_close(basis.mT @ basis, torch.eye(3).double(), rtol=0, atol=2e-5)
    assert orthonormal(torch.full((LONGEST + 1, 2), torch.nan)).isnan().all()


@pytest.mark.parametrize("size", SIZES[1:])
def test_singular_vectors_of_a_tall_matrix(size: int) -> None:
    sizes = torch.tensor([10.0, 1, 0.1])
    vectors, values = left_singular(columns(size, 3) * sizes)
    assert_close(values / size**0.5, sizes, rtol=0.05, atol=0)  # of random columns, nearly orthogonal
    exact = torch.linalg.svdvals(
        (columns(size, 3) * sizes).double().mT @ (columns(size, 3) * sizes).double()
    ).sqrt()
    assert_close(values.double(), exact, rtol=1e-5, atol=0)
    vectors = vectors.double()
    assert_close(vectors.mT @ vectors, torch.eye(3).double(), rtol=0, atol=2e-6)


# ---------------------------------------------------------------------- what stands on them


def test_lanczos_sees_the_spectrum_of_a_long_operator() -> None:
    """Two eigenvalues: three steps find both, wherever the vectors have their right length."""
    entries = torch.ones(LONG)
    entries[::2] = 3
    start = columns(LONG, 1)
    nodes, weights = gauss_quadratures(DiagonalOperator(entries), start / lengths(start, dim=0), 2)
    assert_close(nodes[0], torch.tensor([1.0, 3.0]), rtol=1e-5, atol=0)
    assert_close(weights[0], torch.tensor([0.5, 0.5]), rtol=2e-3, atol=0)


def test_a_quadratic_form_of_one_vector() -> None:
    vector = columns(LONG, 1)
    found = DiagonalOperator(torch.ones(LONG)).quadratic_forms(vector)
    assert_close(found.double(), vector.double().square().sum()[None], rtol=1e-5, atol=0)


def test_a_low_rank_operator_of_long_columns() -> None:
    factor = columns(LONG, 2) / LONG**0.5
    operator = LowRankOperator(factor)
    exact = factor.double() @ (factor.double().mT @ factor.double())
    assert_close((operator @ factor).double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    values, vectors = operator.leading(2)
    gram = factor.double().mT @ factor.double()
    assert_close(values.double(), torch.linalg.eigvalsh(gram).flip(0), rtol=1e-5, atol=0)
    assert_close(vectors.double().square().sum(0), torch.ones(2).double(), rtol=1e-5, atol=0)


def test_products_and_inner_products_of_long_gradients() -> None:
    rows = columns(LONG, 2).mT.contiguous()
    gradients = FactoredGradients.of_rows(rows)
    exact = rows.double() @ rows.double().mT
    for found in (
        gradients.gram(),
        gradients @ rows.mT,
        torch.cat([gradients @ row[:, None] for row in rows], dim=1),
    ):
        assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * float(exact.max()))


@pytest.mark.slow
def test_rules_are_trusted_whatever_the_number_of_parameters() -> None:
    """The norms that they are held against are sums of 35 million squares."""
    model = nn.Linear(7000, 5000)
    data = (columns(6, 7000), torch.arange(6))
    risk = ns.EmpiricalRisk(model, nn.functional.cross_entropy, data)
    assert risk._capabilities.ruled_layers
