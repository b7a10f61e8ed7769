"""An operator for each replica: each is its own matrix, and what only one has is refused of many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import F64, close, generator, normal
from noisescape.linops import (
    DenseOperator,
    DeviationsOperator,
    DiagonalOperator,
    IsotropicOperator,
    LowRankOperator,
    SymmetricOperator,
    diagonal,
    eigenpairs,
    product_trace,
    spectral_density,
    squared_norm,
    trace,
)

REPLICAS = 3
_VALUES = normal(REPLICAS, 5, seed=31).square()
_FACTORS = normal(REPLICAS, 5, 2, seed=32)
_VARIANCES = normal(REPLICAS, seed=33).square()
STRUCTURED: dict[str, tuple[Callable[[], SymmetricOperator], Tensor]] = {
    "diagonal": (lambda: DiagonalOperator(_VALUES), torch.diag_embed(_VALUES)),
    "isotropic": (lambda: IsotropicOperator(_VARIANCES, 5), _VARIANCES[:, None, None] * torch.eye(5, dtype=F64)),
    "deviations": (lambda: DeviationsOperator(_VALUES), torch.diag_embed(_VALUES.square())),
    "low rank": (lambda: LowRankOperator(_FACTORS), _FACTORS @ _FACTORS.mT),
    "scaled diagonal": (
        lambda: DiagonalOperator(_VALUES).scaled(_VARIANCES),
        _VARIANCES[:, None, None] * torch.diag_embed(_VALUES),
    ),
    "scaled": (lambda: 0.5 * LowRankOperator(_FACTORS), 0.5 * _FACTORS @ _FACTORS.mT),
    "sum": (
        lambda: DiagonalOperator(_VALUES) + LowRankOperator(_FACTORS),
        torch.diag_embed(_VALUES) + _FACTORS @ _FACTORS.mT,
    ),
}
each_structured = pytest.mark.parametrize("name", STRUCTURED)
BLOCK_OF_FIVE = torch.eye(5, dtype=F64)
NEEDS_A_SINGLE_ONE: dict[str, Callable[[SymmetricOperator], object]] = {
    "product": lambda operator: operator @ BLOCK_OF_FIVE,
    "product with a vector": lambda operator: operator @ BLOCK_OF_FIVE[0],
    "quadratic forms": lambda operator: operator.quadratic_forms(BLOCK_OF_FIVE),
    "dense": lambda operator: operator.dense(),
    "scipy": lambda operator: operator.to_scipy().matmat(BLOCK_OF_FIVE.numpy()),
    "trace": trace,
    "squared norm": squared_norm,
    "diagonal": diagonal,
    "eigenpairs": lambda operator: eigenpairs(operator, 1),
    "product trace": lambda operator: product_trace(operator, DenseOperator(BLOCK_OF_FIVE)),
    "product trace from the right": lambda operator: product_trace(DenseOperator(BLOCK_OF_FIVE), operator),
    "density": spectral_density,
}


@each_structured
def test_a_replica_is_its_own_matrix(name: str) -> None:
    build, matrices = STRUCTURED[name]
    for index, matrix in enumerate(matrices):
        alone = build().replica(index)
        assert alone.replicas == ()
        close(alone.dense(), matrix)
        close(alone @ BLOCK_OF_FIVE[:, :2], matrix[:, :2])
        close(alone.diagonal(), matrix.diagonal())
        close(alone.trace(), matrix.trace())
        assert type(alone) is type(build())
        with pytest.raises(ValueError, match="single operator and has no replica 0"):
            alone.replica(0)


@each_structured
def test_traces_and_diagonals_of_replicas_are_those_of_each(name: str) -> None:
    build, matrices = STRUCTURED[name]
    operator = build()
    assert operator.replicas == (REPLICAS,)
    close(operator.trace(), matrices.diagonal(dim1=-2, dim2=-1).sum(-1))
    close(operator.diagonal(), matrices.diagonal(dim1=-2, dim2=-1))
    assert operator.sample(4, generator(1)).shape == (4, REPLICAS, 5)


@each_structured
@pytest.mark.parametrize("what", NEEDS_A_SINGLE_ONE)
def test_replicas_refuse_what_only_one_matrix_has(name: str, what: str) -> None:
    operator = STRUCTURED[name][0]()
    with pytest.raises(ValueError, match=r"is 3 operators, one for each replica; take one .* \.replica\(r\)"):
        NEEDS_A_SINGLE_ONE[what](operator)
    NEEDS_A_SINGLE_ONE[what](operator.replica(1))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["isotropic", "low rank", "scaled"])
def test_leading_pairs_of_replicas_are_along_the_last_axis(name: str, k: int) -> None:
    build, matrices = STRUCTURED[name]
    pairs = build().leading(k)
    assert pairs is not None
    values, vectors = pairs
    assert values.shape == (REPLICAS, k)
    assert vectors.shape == (REPLICAS, 5, k)
    close(values, torch.linalg.eigvalsh(matrices).flip(-1)[:, :k])
    close(matrices @ vectors, values[:, None] * vectors)


def test_a_sum_of_different_numbers_of_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one has replicas \(3,\), the other \(\)"):
        DiagonalOperator(_VALUES) + DiagonalOperator(_VALUES[0])
