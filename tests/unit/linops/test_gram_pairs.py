"""Eigenpairs of XᵀX need of X its products alone, and are those of the matrix."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import F64, normal
from noisescape.linops.gram import leading_pairs_of, sketched_pairs, sketches


@dataclass(frozen=True)
class Product:
    """X = LR, never formed; or X as it is, where there is no R."""

    left: Tensor
    right: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left), (self.left if self.right is None else self.right).shape[1]

    @property
    def direct(self) -> Tensor:
        return self.left if self.right is None else self.left[:, :0]

    def __matmul__(self, block: Tensor) -> Tensor:
        return self.left @ (block if self.right is None else self.right @ block)

    def weighted(self, weights: Tensor) -> Tensor:
        products = self.left.T @ weights
        return products if self.right is None else self.right.T @ products

    def gram(self) -> Tensor:
        return self.matrix() @ self.matrix().T

    def matrix(self) -> Tensor:
        return self.left if self.right is None else self.left @ self.right


SHAPES = {"wide": (60, 90), "tall": (90, 60)}


def held(shape: tuple[int, int], *, factored: bool) -> Product:
    count, dimension = shape
    left = normal(count, 50, seed=1) * torch.arange(1, 51, dtype=F64) ** -1.0
    right = normal(50, dimension, seed=2)
    return Product(left, right) if factored else Product(left @ right, None)


@pytest.mark.parametrize("factored", [True, False], ids=["factored", "as it is"])
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "uncentred"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_leading_pairs_are_the_squared_singular_values_of_the_matrix(
    shape: tuple[int, int], centred: bool, factored: bool
) -> None:
    rows = held(shape, factored=factored)
    matrix = rows.matrix() - rows.matrix().mean(0) if centred else rows.matrix()
    values, vectors, total = leading_pairs_of(rows, 7, centred=centred)
    assert_close(values, torch.linalg.svdvals(matrix)[:7].square(), rtol=1e-10, atol=0)
    assert_close(matrix.T @ (matrix @ vectors), values * vectors, rtol=0, atol=1e-9 * float(values[0]))
    assert_close(vectors.T @ vectors, torch.eye(7, dtype=F64), rtol=0, atol=1e-9)
    assert total == pytest.approx(float(matrix.square().sum()))


@pytest.mark.parametrize("factored", [True, False], ids=["factored", "as it is"])
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "uncentred"])
def test_a_sketch_is_near_the_best_rank_and_the_same_each_time(centred: bool, factored: bool) -> None:
    rows = held((90, 60), factored=factored)
    assert sketches(rows, 4)
    matrix = rows.matrix() - rows.matrix().mean(0) if centred else rows.matrix()
    values, vectors = sketched_pairs(rows, 4, centred=centred)
    assert_close(values, torch.linalg.svdvals(matrix)[:4].square(), rtol=1e-2, atol=0)
    assert_close(vectors.T @ vectors, torch.eye(4, dtype=F64), rtol=0, atol=1e-12)
    again = sketched_pairs(rows, 4, centred=centred)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], vectors)


def test_where_a_sketch_would_not_pay_the_pairs_are_exact() -> None:
    rows = held((90, 60), factored=True)
    assert not sketches(rows, 5)
    found, exact = sketched_pairs(rows, 5, centred=True), leading_pairs_of(rows, 5, centred=True)
    assert all(torch.equal(one, other) for one, other in zip(found, exact[:2], strict=True))
