"""Leading eigenpairs that structure gives are those of a dense solver."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cases import F64, close, normal
from noisescape.linops.gram import leading_pairs
from operator_matrix import MATRIX, matrix_of

KNOWS_LEADING_PAIRS = [
    "sampled Fisher",
    "empirical Fisher",
    "noise covariance, with replacement",
    "noise covariance, without",
    "scaled noise covariance",
    "isotropic",
    "low rank",
    "scaled low rank",
]


@pytest.mark.parametrize("name", KNOWS_LEADING_PAIRS)
def test_leading_pairs_known_from_structure_are_those_of_a_dense_solver(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    pairs = operator.leading(4)
    assert pairs is not None
    values, vectors = pairs
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:4]
    assert len(values) == vectors.shape[1]
    close(values, expected[: len(values)])
    assert bool((expected[len(values) :].abs() <= 1e-12 * expected[0]).all()), "pairs left out must be null"
    close(vectors.T @ vectors, torch.eye(len(values), dtype=F64))
    close(matrix @ vectors, values * vectors)


@pytest.mark.parametrize("shape", [(30, 6), (6, 30), (12, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_leading_pairs_of_a_gram_matrix_stay_orthonormal_when_ill_conditioned(shape, dtype) -> None:
    small = min(shape)
    left = torch.linalg.qr(normal(shape[0], small, seed=1)).Q
    right = torch.linalg.qr(normal(shape[1], small, seed=2)).Q
    rows = ((left * torch.logspace(0, -8, small, dtype=F64)) @ right.T).to(dtype)
    values, vectors = leading_pairs(rows, small)
    assert_close(vectors.T @ vectors, torch.eye(len(values), dtype=dtype), rtol=0, atol=0.05)
    exact = torch.linalg.svdvals(rows.double())[: len(values)].square()
    floor = 100 * torch.finfo(dtype).eps
    assert_close(values.double(), exact, rtol=0.0, atol=float(floor * exact[0]))
