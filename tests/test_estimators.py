"""What is estimated from products alone: dense linear algebra where exact, else its own error."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from cases import CASES, F64, normal, symmetric
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    Estimate,
    FunctionOperator,
    IsotropicOperator,
    LowRankOperator,
    SymmetricOperator,
    ToleranceWarning,
    VectorEstimate,
    diagonal,
    eigenpairs,
    product_trace,
    ratio,
    spectral_density,
    squared_norm,
    trace,
)
from noisescape.linops.control_variate import KEPT, PILOT
from noisescape.linops.probing import FIRST_STAGE, mean_of_probes
from noisescape.measurement.memory import Ledger
from noisescape.risk import EmpiricalRisk

# ---------------------------------------------------------------------- eigenpairs

DISTINCT = torch.cat([torch.tensor([9.0, 7, 5.5, 4, -8, -6, -3]), torch.linspace(-1, 1, 153)]).to(F64)
REPEATED = torch.cat([torch.tensor([5.0, 5, 5, 2, -4, -4]), torch.linspace(-1, 1, 154)]).to(F64)
SPECTRA = {
    "distinct": DISTINCT,
    "repeated": REPEATED,
    "rank five": torch.cat([torch.tensor([9.0, 7, 5.5, 4, 3]), torch.zeros(155)]).to(F64),
    "all equal": torch.full((160,), 2.0, dtype=F64),
    "zero": torch.zeros(160, dtype=F64),
    "small and dense": torch.linspace(-2, 3, 20, dtype=F64),
}


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
    matrix = symmetric(160, DISTINCT, seed=3)
    columns = []

    def multiply(block: Tensor) -> Tensor:
        columns.append(block.shape[1])
        return matrix @ block

    operator = FunctionOperator(multiply, 160, dtype=F64, device="cpu")
    operator @ normal(160, seed=1)  # spent by somebody else
    columns.clear()
    assert eigenpairs(operator, 3).cost == sum(columns) < 160


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


# ---------------------------------------------------------------------- traces: the matrix of operators

SIZE = 70
SPREAD = torch.cat([torch.tensor([20.0, 8, 3]), torch.linspace(0.1, 1, SIZE - 3)]).to(F64)
INDEFINITE = torch.cat([torch.tensor([20.0, 8, -5]), torch.linspace(-1, 2, SIZE - 3)]).to(F64)
_PSD = symmetric(SIZE, SPREAD, seed=11)
_MIXED = symmetric(SIZE, INDEFINITE, seed=12)
_OTHER = symmetric(SIZE, INDEFINITE.flip(0), seed=13)

SQUARE: dict[str, Callable[[], SymmetricOperator]] = {
    "indefinite": lambda: DenseOperator(_MIXED, name="A"),
    "other indefinite": lambda: DenseOperator(_OTHER, name="B"),
    "PSD": lambda: DenseOperator(_PSD, psd=True),
    "PSD of low rank": lambda: LowRankOperator(normal(SIZE, 4, seed=14)),
    "PSD of higher rank": lambda: LowRankOperator(normal(SIZE, 40, seed=15)),
    "diagonal": lambda: DiagonalOperator(SPREAD),
    "isotropic": lambda: IsotropicOperator(torch.tensor(0.7, dtype=F64), SIZE),
    "sum": lambda: DenseOperator(_PSD, psd=True) + LowRankOperator(normal(SIZE, 4, seed=14)),
    "scaled": lambda: 0.3 * LowRankOperator(normal(SIZE, 40, seed=15)),
}

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
    operator = DenseOperator(_MIXED)
    top = eigenpairs(operator, 6, which="magnitude").vectors
    given, none = (trace(operator, deflate=basis, rtol=0.02, seed=1) for basis in (top, 0))
    assert given.cost < none.cost
    assert abs(given.value - float(_MIXED.trace())) <= 4 * given.stderr


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
    matrix, other = SQUARE[name]().dense(), _MIXED
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
        estimate = trace(DenseOperator(_MIXED), deflate=2, rtol=1e-3, max_products=SIZE)
    assert estimate.stderr > 0
    assert estimate.cost <= SIZE


def test_diagonal_of_a_small_matrix_is_exact() -> None:
    estimate = diagonal(DenseOperator(_MIXED[:16, :16]))
    assert_close(estimate.value, _MIXED[:16, :16].diagonal(), rtol=1e-12, atol=0)
    assert torch.equal(estimate.stderr, torch.zeros(16, dtype=F64))


CORE = {
    "trace of the Hessian": lambda risk, theta, seed: trace(risk.hessian(theta), deflate=4, rtol=0.03, seed=seed),
    "Tr(HΣ)": lambda risk, theta, seed: product_trace(
        risk.hessian(theta), risk.noise_covariance(theta, 3), deflate=3, rtol=0.03, seed=seed
    ),
    "Tr(HΣ), streamed": lambda risk, theta, seed: product_trace(
        risk.hessian(theta),
        type(risk).noise_covariance(_tight(risk), theta, 3),
        deflate=3,
        rtol=0.03,
        seed=seed,
    ),
    "Tr(FΣ)": lambda risk, theta, seed: product_trace(
        risk.fisher(theta), risk.noise_covariance(theta, 3), deflate=3, rtol=0.03, seed=seed
    ),
    "Tr(HF)": lambda risk, theta, seed: product_trace(
        risk.hessian(theta), risk.fisher(theta), deflate=3, rtol=0.03, seed=seed
    ),
}


def _tight(risk):
    return CASES["conv"].risk(memory_budget=3_000)


@pytest.mark.parametrize("name", CORE)
@pytest.mark.usefixtures("by_probes")
def test_traces_of_a_networks_matrices_match_dense_autograd(name: str) -> None:
    case = CASES["conv"]
    dense = {"H": case.hessian(), "F": case.gauss_newton(), "Σ": case.covariance() / 3}
    exact = {
        "trace of the Hessian": dense["H"].trace(),
        "Tr(HΣ)": (dense["H"] * dense["Σ"]).sum(),
        "Tr(HΣ), streamed": (dense["H"] * dense["Σ"]).sum(),
        "Tr(FΣ)": (dense["F"] * dense["Σ"]).sum(),
        "Tr(HF)": (dense["H"] * dense["F"]).sum(),
    }[name]
    estimate = CORE[name](case.risk(), case.theta, 2)
    assert 0 < estimate.relative_stderr <= 0.03
    assert abs(estimate.value - float(exact)) <= 4 * estimate.stderr


def test_product_trace_with_a_covariance_of_low_rank_is_exact_and_costs_its_rank() -> None:
    case = CASES["conv"]
    estimate = product_trace(
        case.risk().hessian(case.theta), case.risk().noise_covariance(case.theta, 3), deflate=20
    )
    exact = float((case.hessian() * case.covariance()).sum()) / 3
    assert (estimate.stderr, estimate.cost) == (0, case.count - 1)
    assert estimate.value == pytest.approx(exact, rel=1e-9)


def test_product_trace_with_no_noise_at_all_is_zero() -> None:
    """Identical samples: the covariance has rank nought."""
    case = CASES["conv"]
    image, label = case.inputs[:1].repeat(4, 1, 1, 1), case.targets[:1].repeat(4)
    risk = case.risk().with_data((image, label))
    for replacement, batch_size in ((True, 2), (False, 4)):
        covariance = risk.noise_covariance(case.theta, batch_size, replacement=replacement)
        estimate = product_trace(risk.hessian(case.theta), covariance, deflate=8)
        assert abs(estimate.value) < 1e-25
        assert estimate.stderr < 1e-25
        assert trace(covariance, deflate=2).value == pytest.approx(0, abs=1e-25)


# ---------------------------------------------------------------------- by way of the Gauss–Newton matrix


@functools.cache
def _fitted(residual: float) -> tuple[EmpiricalRisk, Tensor]:
    """A network whose targets are what it puts out, but for a residual."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(F64)
    inputs = normal(60, 6, seed=1)
    targets = model(inputs).detach() + residual * normal(60, 3, seed=2)
    risk = EmpiricalRisk(model, nn.functional.mse_loss, (inputs, targets))
    return risk, risk.parameters()


@functools.cache
def _operands(residual: float) -> dict[str, SymmetricOperator]:
    risk, theta = _fitted(residual)
    return {
        "left": risk.hessian(theta),
        "right": risk.noise_covariance(theta, 3),
        "control": risk.gauss_newton(theta),
    }


@functools.cache
def _exact_trace_h_sigma(residual: float) -> float:
    risk, theta = _fitted(residual)
    return float((risk.dense_hessian(theta) * risk.noise_covariance(theta, 3).dense()).sum())


@pytest.mark.parametrize("residual", [1e-4, 1.0], ids=["fitted", "not fitted"])
@pytest.mark.usefixtures("by_probes")
def test_a_fitted_networks_product_trace_takes_few_hessian_products(residual: float) -> None:
    risk, theta = _fitted(residual)
    hessian = risk.hessian(theta)
    estimate = product_trace(
        hessian,
        risk.noise_covariance(theta, 3),
        control=risk.gauss_newton(theta),
        deflate=4,
        rtol=0.03,
        seed=1,
    )
    assert (hessian.products == PILOT + KEPT) is (residual < 1)
    assert 0 < estimate.relative_stderr <= 0.03
    exact = _exact_trace_h_sigma(residual)
    assert abs(estimate.value - exact) <= stats.t.isf(3e-5, estimate.dof) * estimate.stderr
    if residual < 1:
        assert estimate.cost > 2 * (PILOT + KEPT) + 4


def test_a_budget_too_small_for_a_control_is_spent_on_the_hessian() -> None:
    risk, theta = _fitted(1e-4)
    hessian = risk.hessian(theta)
    with pytest.warns(ToleranceWarning, match="noise covariance") as caught:
        estimate = product_trace(
            hessian,
            risk.noise_covariance(theta, 3),
            control=risk.gauss_newton(theta),
            deflate=4,
            rtol=1e-6,
            max_products=12,
            seed=1,
        )
    assert [one.filename for one in caught] == [__file__]
    assert estimate.cost == hessian.products == 12


# ---------------------------------------------------------------------- tolerance, budget, warning

ESTIMATORS = {
    "trace": lambda **options: trace(DenseOperator(_MIXED), deflate=2, **options),
    "squared norm": lambda **options: squared_norm(DenseOperator(_MIXED), deflate=2, **options),
    "diagonal": lambda **options: diagonal(DenseOperator(_MIXED), **options),
    "product trace by signs": lambda **options: product_trace(
        DenseOperator(_MIXED), DenseOperator(_OTHER), deflate=2, **options
    ),
    "product trace by draws": lambda **options: product_trace(
        DenseOperator(_MIXED), DiagonalOperator(SPREAD), deflate=2, **options
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
        trace(DenseOperator(_MIXED), deflate=2, rtol=1e-6, max_products=40)
    assert [w.filename for w in caught] == [__file__]


@each_estimator
@pytest.mark.usefixtures("by_probes")
def test_cost_counts_the_products_spent(name: str) -> None:
    spent = []

    def counting(matrix: Tensor) -> SymmetricOperator:
        def multiply(block: Tensor) -> Tensor:
            spent.append(block.shape[1])
            return matrix @ block

        return FunctionOperator(multiply, SIZE, dtype=F64, device="cpu")

    left, right = counting(_MIXED), counting(_OTHER)
    estimate = {
        "trace": lambda: trace(left, deflate=2, rtol=0.05),
        "squared norm": lambda: squared_norm(left, deflate=2, rtol=0.05),
        "diagonal": lambda: diagonal(left, rtol=0.2),
        "product trace by signs": lambda: product_trace(left, right, deflate=2, rtol=0.05),
        "product trace by draws": lambda: product_trace(left, DiagonalOperator(SPREAD), deflate=2, rtol=0.05),
    }[name]()
    own_of_the_diagonal = 2 * 2 if name == "product trace by draws" else 0
    assert estimate.cost == sum(spent) + own_of_the_diagonal


@pytest.mark.parametrize(
    "right",
    [
        2 * DenseOperator(_PSD, psd=True),
        DenseOperator(_PSD, psd=True) + DiagonalOperator(SPREAD),
        FunctionOperator(lambda block: _PSD @ block, SIZE, dtype=F64, device="cpu", psd=True),
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
    estimate = product_trace(DenseOperator(_MIXED), right, deflate=2, rtol=0.1)
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


# ---------------------------------------------------------------------- unbiasedness and coverage

FLAT = symmetric(SIZE, torch.linspace(0.2, 3, SIZE, dtype=F64), seed=16)

REPEATED_ESTIMATES: dict[str, tuple[Callable[[int], Estimate], float]] = {
    "trace": (
        lambda seed: trace(DenseOperator(_MIXED), deflate=2, rtol=0.05, seed=seed),
        float(_MIXED.trace()),
    ),
    "trace, deflated": (
        lambda seed: trace(DenseOperator(_PSD), deflate=10, rtol=0.01, seed=seed),
        float(_PSD.trace()),
    ),
    "trace, flat spectrum": (
        lambda seed: trace(DenseOperator(FLAT), deflate=2, rtol=0.01, seed=seed),
        float(FLAT.trace()),
    ),
    "trace, first stage only": (
        lambda seed: trace(DenseOperator(FLAT), deflate=2, rtol=0.5, seed=seed),
        float(FLAT.trace()),
    ),
    "squared norm": (
        lambda seed: squared_norm(DenseOperator(_MIXED), deflate=4, rtol=0.02, seed=seed),
        float(_MIXED.square().sum()),
    ),
    "product trace by signs": (
        lambda seed: product_trace(DenseOperator(_MIXED), DenseOperator(FLAT), deflate=4, rtol=0.05, seed=seed),
        float((_MIXED * FLAT).sum()),
    ),
    "product trace by draws": (
        lambda seed: product_trace(
            DenseOperator(_MIXED), DiagonalOperator(SPREAD), deflate=4, rtol=0.05, seed=seed
        ),
        float((_MIXED.diagonal() * SPREAD).sum()),
    ),
    "product trace by draws, known directions": (
        lambda seed: product_trace(
            DenseOperator(FLAT), LowRankOperator(normal(SIZE, 40, seed=15)), deflate=4, rtol=0.03, seed=seed
        ),
        float((FLAT * LowRankOperator(normal(SIZE, 40, seed=15)).dense()).sum()),
    ),
    "product trace over the factors of a covariance": (
        lambda seed: product_trace(_operands(1.0)["left"], _operands(1.0)["right"], deflate=4, rtol=0.1, seed=seed),
        _exact_trace_h_sigma(1.0),
    ),
    "product trace by way of a control": (
        lambda seed: product_trace(**_operands(1e-4), deflate=4, rtol=0.03, seed=seed),
        _exact_trace_h_sigma(1e-4),
    ),
}


@pytest.mark.parametrize("name", REPEATED_ESTIMATES)
@pytest.mark.usefixtures("by_probes")
def test_intervals_cover_and_estimates_are_unbiased_over_a_thousand_seeds(name: str) -> None:
    estimate, exact = REPEATED_ESTIMATES[name]
    found = [estimate(seed) for seed in range(1000)]
    assert all(one.stderr > 0 for one in found)
    for level, low, high in ((0.95, 0.93, 0.97), (0.5, 0.45, 0.55)):
        inside = [a <= exact <= b for a, b in (one.interval(level) for one in found)]
        assert low <= np.mean(inside) <= high, f"{level:.0%} interval covers {np.mean(inside):.1%}"
    errors = np.array([one.value - exact for one in found])
    assert abs(errors.mean()) <= 4 * errors.std() / math.sqrt(len(errors))
    # errors in units of the standard error are Student's: as normal numbers they have the spread 1
    ranks = np.array([stats.t.cdf((one.value - exact) / one.stderr, one.dof) for one in found])
    scores = stats.norm.ppf(ranks.clip(1e-9, 1 - 1e-9))
    assert scores.std() == pytest.approx(1, abs=0.12), "the standard error is of the right size"


@pytest.mark.usefixtures("by_probes")
def test_diagonal_intervals_cover_over_many_seeds() -> None:
    """Entries of one estimate share their probes: the coverage is averaged over entries and seeds."""
    exact = FLAT.diagonal()
    inside, errors = [], []
    for seed in range(300):
        estimate = diagonal(DenseOperator(FLAT), rtol=0.05, seed=seed)
        low, high = estimate.interval()
        inside.append(((low <= exact) & (exact <= high)).double())
        errors.append(estimate.value - exact)
    assert 0.93 <= float(torch.stack(inside).mean()) <= 0.97
    stacked = torch.stack(errors)
    z = stacked.mean(0) / (stacked.std(0) / math.sqrt(len(errors)))
    assert float(z.abs().max()) < 4.5


# ---------------------------------------------------------------------- spectral density


def moments(spectrum: Tensor, power: int) -> float:
    return float((spectrum**power).mean())


@pytest.mark.parametrize("name", ["distinct", "repeated", "rank five", "all equal", "zero", "small and dense"])
def test_spectral_density_is_a_density(name: str) -> None:
    spectrum = SPECTRA[name]
    found = spectral_density(DenseOperator(symmetric(len(spectrum), spectrum, seed=3)), points=4096)
    assert found.grid.shape == found.density.shape == found.stderr.shape == (4096,)
    assert bool(torch.isfinite(found.density).all())
    assert bool((found.density >= 0).all())
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-3)
    assert_close(found.weights.sum(1), torch.ones(len(found.weights), dtype=F64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["distinct", "repeated", "rank five", "all equal", "small and dense"])
@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_moments_of_the_density_are_normalised_traces_of_powers(name: str, power: int) -> None:
    spectrum = SPECTRA[name]
    operator = DenseOperator(symmetric(len(spectrum), spectrum, seed=3))
    found = spectral_density(operator, steps=20, probes=16, seed=1)
    value, error = found.moment(power)
    exact = moments(spectrum, power)
    assert abs(value - exact) <= 4 * error + 1e-9 * float(spectrum.abs().max()) ** power
    assert error <= 0.6 * float(spectrum.abs().max()) ** power


def test_each_probes_quadrature_is_exact_for_low_powers() -> None:
    """With m steps zᵀAᵖz/D is reproduced for p < 2m; checked against the mean of the probes' own powers."""
    matrix = symmetric(30, torch.linspace(-1, 2, 30, dtype=F64), seed=3)
    found = spectral_density(DenseOperator(matrix), steps=4, probes=5, seed=2)
    signs = 2 * torch.randint(0, 2, (30, 5), generator=torch.Generator().manual_seed(2)).to(F64) - 1
    for power in range(8):
        expected = ((torch.linalg.matrix_power(matrix, power) @ signs) * signs).sum(0) / 30
        assert_close((found.weights * found.nodes**power).sum(1), expected, rtol=1e-10, atol=1e-10)
    beyond = ((torch.linalg.matrix_power(matrix, 8) @ signs) * signs).sum(0) / 30
    assert float(((found.weights * found.nodes**8).sum(1) - beyond).abs().max()) > 1e-6


def test_density_agrees_with_the_smoothed_spectrum_within_its_error() -> None:
    spectrum = SPECTRA["distinct"]
    operator = DenseOperator(symmetric(160, spectrum, seed=3))
    found = spectral_density(operator, steps=60, probes=30, bandwidth=0.3, seed=4)
    kernel = torch.exp(-0.5 * ((found.grid[:, None] - spectrum) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi))
    exact = kernel.mean(1)
    assert float(((found.density - exact).abs() - 5 * found.stderr).max()) < 1e-4
    assert found.cost == 60 * 30


def test_exhausted_krylov_spaces_put_all_weight_on_the_true_eigenvalues() -> None:
    """Three distinct eigenvalues are found after three steps; the rest must carry no weight."""
    spectrum = torch.cat([torch.full((20,), 1.0), torch.full((15,), 4.0), torch.full((5,), 10.0)]).to(F64)
    found = spectral_density(DenseOperator(symmetric(40, spectrum, seed=3)), steps=30, probes=4)
    distance = (found.nodes[..., None] - torch.tensor([1.0, 4, 10], dtype=F64)).abs().amin(-1)
    astray = found.weights[distance > 1e-6]
    assert float(astray.sum()) < 1e-10 * 4


@pytest.mark.parametrize("value", [1.0, 1000.0])
def test_density_of_a_single_eigenvalue_is_where_it_is(value: float) -> None:
    operator = IsotropicOperator(torch.tensor(value, dtype=F64), 50)
    found = spectral_density(operator, points=4096)
    mean = float(torch.trapezoid(found.density * found.grid, found.grid))
    assert mean == pytest.approx(value, rel=1e-3)
    assert float(found.grid.min()) <= value <= float(found.grid.max())


@pytest.mark.parametrize(("steps", "probes"), [(60, 4), (25, 8), (90, 2)])
def test_a_densitys_memory_is_its_lanczos_vectors(steps: int, probes: int) -> None:
    operator = DiagonalOperator(torch.linspace(-1, 3, 20_000, dtype=F64))
    with Ledger() as ledger:
        spectral_density(operator, steps=steps, probes=probes, points=16)
    assert ledger.peak <= 1.3 * steps * probes * operator.size * 8


def test_a_density_keeps_its_hands_off_what_a_product_returns() -> None:
    """The identity may return the very block that it was given."""
    found = spectral_density(FunctionOperator(lambda block: block, 50, dtype=F64, device="cpu"), steps=3)
    assert found.moment(1)[0] == pytest.approx(1, rel=1e-12)
    assert found.cost == 3 * 8


@pytest.mark.parametrize(("options", "message"), [({"steps": 0}, "at least 1"), ({"bandwidth": -1.0}, "positive")])
def test_bad_arguments_of_a_density_are_refused_before_any_product(options, message: str) -> None:
    operator = DenseOperator(_MIXED)
    with pytest.raises(ValueError, match=message):
        spectral_density(operator, **options)
    assert operator.products == 0


# ---------------------------------------------------------------------- precision

EVERY: dict[str, Callable[[SymmetricOperator], object]] = {
    "trace": lambda operator: trace(operator, deflate=2, rtol=0.2),
    "squared norm": lambda operator: squared_norm(operator, deflate=2, rtol=0.2),
    "diagonal": lambda operator: diagonal(operator, rtol=0.5),
    "product trace": lambda operator: product_trace(operator, operator, deflate=2, rtol=0.2),
    "eigenpairs": lambda operator: eigenpairs(operator, 2, which="smallest"),
    "largest eigenpairs": lambda operator: eigenpairs(operator, 2),
    "density": lambda operator: spectral_density(operator, steps=5, probes=2, points=8),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["dense", "diagonal", "low rank", "scaled"])
def test_half_precision_is_refused_with_the_mend_before_work_starts(name: str, dtype, kind: str) -> None:
    operator = {
        "dense": lambda: DenseOperator(_PSD.to(dtype)),
        "diagonal": lambda: DiagonalOperator(SPREAD.to(dtype)),
        "low rank": lambda: LowRankOperator(normal(SIZE, 4, seed=14).to(dtype)),
        "scaled": lambda: 2 * DenseOperator(_PSD.to(dtype)),
    }[kind]()
    with pytest.raises(TypeError, match=rf"is of {dtype}.*\.to\(torch\.float32\)"):
        EVERY[name](operator)
    assert operator.products == 0


def test_a_half_precision_control_or_second_operand_is_refused() -> None:
    single, half = (DenseOperator(_PSD.to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    factored = LowRankOperator(normal(SIZE, 40, seed=15).float())
    for call in (lambda: product_trace(single, half), lambda: product_trace(single, factored, control=half)):
        with pytest.raises(TypeError, match=r"\.to\(torch\.float32\)"):
            call()
    for draw in (half.sample, lambda _count: LowRankOperator(half.matrix).leading(1)):
        half.psd = True
        with pytest.raises(TypeError, match=r"\.to\(torch\.float32\)"):
            draw(1)


def _single(case_name: str = "mlp cross-entropy") -> dict[str, SymmetricOperator]:
    case = CASES[case_name]
    risk, theta = case.risk(torch.float32), case.theta.float()
    return {
        "dense": DenseOperator(_PSD.float(), psd=True),
        "low rank": LowRankOperator(normal(SIZE, 40, seed=15).float()),
        "diagonal": DiagonalOperator(SPREAD.float()),
        "scaled": 0.5 * LowRankOperator(normal(SIZE, 40, seed=15).float()),
        "sum": DenseOperator(_PSD.float(), psd=True) + DiagonalOperator(SPREAD.float()),
        "noise covariance": risk.noise_covariance(theta, 3),
        "empirical Fisher": risk.empirical_fisher(theta),
    }


def _tensors(result: object) -> list[Tensor]:
    """All numbers of a result."""
    found = vars(result).values() if hasattr(result, "__dict__") else [result]
    return [torch.as_tensor(one) for one in found]


def _equal(left: object, right: object) -> bool:
    pairs = zip(_tensors(left), _tensors(right), strict=True)
    return all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", _single())
def test_an_ambient_autocast_changes_no_estimate(name: str, kind: str) -> None:
    expected = EVERY[name](_single()[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = EVERY[name](_single()[kind])
        assert torch.is_autocast_enabled("cpu")
    assert _equal(found, expected)


@pytest.mark.parametrize("kind", _single())
def test_an_ambient_autocast_changes_nothing_that_an_operator_gives(kind: str) -> None:
    def all_of_it(operator: SymmetricOperator) -> list[Tensor]:
        block = normal(operator.size, 3, seed=1).float()
        found = [
            operator @ block,
            operator @ block[:, 0],
            operator.quadratic_forms(block),
            operator.sample(3, torch.Generator().manual_seed(1)),
            operator.dense(),
            operator.diagonal(),
            operator.trace(),
            *(operator.leading(2) or ()),
        ]
        principal, parts = operator.principal(2), operator.split(2)
        if principal is not None:
            found.append(principal)
        if parts is not None:
            found += [parts.columns(), parts.rest(normal(len(parts.carried), 2, seed=2).float())]
        return found

    expected = all_of_it(_single()[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = all_of_it(_single()[kind])
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, two)


# ---------------------------------------------------------------------- results

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
        eigenpairs(DenseOperator(_MIXED), 1).cost = 0


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
