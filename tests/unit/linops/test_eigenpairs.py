"""Eigenpairs from products alone are those of a dense solver, at the cost they claim."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import CASES, F64, CountedOperator, normal, symmetric
from matrices import DISTINCT, SPECTRA
from noisescape.linops import DenseOperator, LowRankOperator, eigenpairs


def expected_values(spectrum: Tensor, k: int, which: str) -> Tensor:
    ordered = {
        "largest": sorted(spectrum.tolist(), reverse=True),
        "smallest": sorted(spectrum.tolist()),
        "magnitude": sorted(spectrum.tolist(), key=abs, reverse=True),
    }[which]
    return torch.tensor(ordered[:k], dtype=F64)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_eigenpairs_are_those_of_a_dense_solver(name: str, which: str, k: int, dtype) -> None:
    spectrum = SPECTRA[name]
    matrix = symmetric(len(spectrum), spectrum, seed=3).to(dtype)
    pairs = eigenpairs(DenseOperator(matrix), k, which=which, tol=None if dtype == F64 else 1e-6)
    tolerance = 1e-9 if dtype == F64 else 1e-5
    scale = float(spectrum.abs().max())
    expected = expected_values(spectrum, k, which)
    found = pairs.values.double()
    if which == "magnitude":  # ties in magnitude may come in either order
        found, expected = found.abs(), expected.abs()
    assert_close(found, expected, rtol=0, atol=tolerance * scale + 1e-30)
    assert pairs.values.dtype == pairs.vectors.dtype == dtype
    assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(k, dtype=dtype), rtol=0, atol=10 * tolerance)
    by_hand = torch.stack(
        [(matrix @ u - value * u).norm() for value, u in zip(pairs.values, pairs.vectors.T, strict=True)]
    )
    assert_close(pairs.residuals, by_hand, rtol=1e-3, atol=tolerance * scale)
    assert float(pairs.residuals.max()) <= 100 * tolerance * scale


@pytest.mark.parametrize("size", [12, 150])
def test_all_eigenpairs_diagonalise_the_matrix(size: int) -> None:
    matrix = symmetric(size, normal(size, seed=1), seed=2)
    pairs = eigenpairs(DenseOperator(matrix), size)
    assert_close((pairs.vectors * pairs.values) @ pairs.vectors.T, matrix, rtol=0, atol=1e-12)


def test_cost_of_eigenpairs_is_the_products_spent() -> None:
    operator = CountedOperator(symmetric(160, DISTINCT, seed=3))
    operator @ normal(160, seed=1)  # spent by somebody else
    operator.columns.clear()
    assert eigenpairs(operator, 3).cost == sum(operator.columns) < 160


def test_eigenpairs_from_structure_cost_only_their_residuals() -> None:
    operator = LowRankOperator(normal(200, 6, seed=1))
    assert eigenpairs(operator, 4).cost == 4


def test_more_eigenpairs_than_the_structures_rank_are_found_all_the_same() -> None:
    factor = normal(140, 3, seed=1)
    values = eigenpairs(LowRankOperator(factor), 5).values
    expected = torch.cat([torch.linalg.svdvals(factor).square(), torch.zeros(2, dtype=F64)])
    assert_close(values, expected, rtol=1e-9, atol=1e-9)


def test_eigenpairs_repeat_with_the_seed() -> None:
    operator = DenseOperator(symmetric(160, DISTINCT, seed=3))
    first, again = eigenpairs(operator, 2, seed=4), eigenpairs(operator, 2, seed=4)
    assert torch.equal(first.vectors, again.vectors)


def test_eigenpairs_that_do_not_converge_say_what_to_change() -> None:
    operator = DenseOperator(symmetric(400, torch.linspace(0, 1, 400, dtype=F64), seed=3))
    with pytest.raises(RuntimeError, match=r"of 5 eigenpairs.*within 40 products.*looser tol or more products"):
        eigenpairs(operator, 5, max_products=40)


def test_hessian_eigenpairs_match_dense_autograd() -> None:
    case = CASES["conv"]
    pairs = eigenpairs(case.risk().hessian(case.theta), 3)
    assert_close(pairs.values, torch.linalg.eigvalsh(case.hessian()).flip(0)[:3], rtol=1e-9, atol=1e-12)


REPEATED = {
    "every one ten times": torch.arange(40, 0, -1, dtype=F64).repeat_interleave(10),
    "of either sign": torch.cat(
        [normal(150, seed=1).clamp(-1, 1), torch.tensor([5.0, -5.0, 4.0, -4.0], dtype=F64).repeat(3)]
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("name", REPEATED)
def test_no_copy_of_a_repeated_eigenvalue_is_left_out(name: str, which: str, seed: int) -> None:
    """ARPACK alone finds one or two of the ten."""
    spectrum = REPEATED[name]
    operator = CountedOperator(symmetric(len(spectrum), spectrum, seed=3))
    pairs = eigenpairs(operator, 6, which=which, subspace=20, seed=seed)
    found, expected = pairs.values, expected_values(spectrum, 6, which)
    if which == "magnitude":
        found, expected = found.abs(), expected.abs()
    assert_close(found, expected, rtol=0, atol=1e-7)
    assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(6, dtype=F64), rtol=0, atol=1e-7)
    assert float(pairs.residuals.max()) < 1e-6
    assert pairs.cost == sum(operator.columns)


def test_a_budget_that_leaves_nothing_to_look_for_copies_is_refused() -> None:
    operator = DenseOperator(symmetric(400, REPEATED["every one ten times"], seed=3))
    whole = eigenpairs(operator, 3)
    assert torch.equal(eigenpairs(operator, 3, max_products=whole.cost).values, whole.values)
    with pytest.raises(RuntimeError, match=f"not all of 3 eigenpairs.*within {whole.cost - 1} products"):
        eigenpairs(operator, 3, max_products=whole.cost - 1)
