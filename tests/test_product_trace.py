"""Tr(AB): which operand is which, what a control variate changes, and that its intervals cover."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from benchmarks.coverage import Problem, measured, problems
from cases import CASES, F64, Case, classes, normal, symmetric
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    IsotropicOperator,
    LowRankOperator,
    SymmetricOperator,
    product_trace,
)
from noisescape.linops.control_variate import KEPT, PILOT
from noisescape.linops.probing import FIRST_STAGE, mean_of_probes
from noisescape.measurement import indicator
from noisescape.simulation import recorders

SIZE = 120
SPECTRUM = torch.cat([torch.tensor([20.0, 8, -5]), torch.linspace(-1, 2, SIZE - 3)]).to(F64)
MATRIX = symmetric(SIZE, SPECTRUM, seed=1)
OTHER = symmetric(SIZE, SPECTRUM.flip(0), seed=2)
FACTOR = normal(SIZE, 40, seed=3)
PSD = symmetric(SIZE, SPECTRUM.abs(), seed=4)

# ---------------------------------------------------------------------- the order of operands

WIDER = Case(
    lambda: nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 3)),
    normal(120, 10, seed=1),
    classes(120, of=3, seed=2),
)
OPERANDS: dict[str, Callable[[], SymmetricOperator]] = {
    "Hessian": lambda: WIDER.risk().hessian(WIDER.theta),
    "Gauss–Newton": lambda: WIDER.risk().gauss_newton(WIDER.theta),
    "noise covariance": lambda: WIDER.risk().noise_covariance(WIDER.theta, 3),
    "scaled noise covariance": lambda: 2 * WIDER.risk().noise_covariance(WIDER.theta, 3),
    "empirical Fisher": lambda: WIDER.risk().empirical_fisher(WIDER.theta),
    "diagonal": lambda: DiagonalOperator(torch.linspace(0.1, 2, 171, dtype=F64)),
    "isotropic": lambda: IsotropicOperator(torch.tensor(0.3, dtype=F64), 171),
    "low rank": lambda: LowRankOperator(normal(171, 30, seed=5)),
    "dense": lambda: DenseOperator(symmetric(171, torch.linspace(-1, 2, 171), seed=6)),
    "dense PSD": lambda: DenseOperator(symmetric(171, torch.linspace(0, 2, 171), seed=7), psd=True, name="PSD"),
}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(OPERANDS, 2)))
@pytest.mark.usefixtures("by_probes")
def test_the_order_of_operands_changes_neither_value_nor_cost(one: str, other: str) -> None:
    first, second = (
        product_trace(OPERANDS[left](), OPERANDS[right](), rtol=0.1, deflate=8, seed=3)
        for left, right in ((one, other), (other, one))
    )
    assert first == second


@pytest.mark.usefixtures("by_probes")
def test_whichever_operand_is_factored_costs_no_products() -> None:
    for order in (1, -1):
        hessian, noise = OPERANDS["Gauss–Newton"](), OPERANDS["noise covariance"]()
        found = product_trace(*(hessian, noise)[::order], rtol=0.05, deflate=8)
        assert noise.products == 0
        assert found.cost == hessian.products


# ---------------------------------------------------------------------- the control variate


@pytest.mark.usefixtures("by_probes")
def test_of_a_control_like_the_operator_four_products_are_all_that_the_operator_spends() -> None:
    operator, control = DenseOperator(MATRIX), DenseOperator(MATRIX + 1e-9 * OTHER)
    found = product_trace(operator, LowRankOperator(FACTOR), control=control, rtol=0.02)
    assert operator.products == PILOT + KEPT
    assert found.cost == operator.products + control.products
    exact = float((MATRIX * (FACTOR @ FACTOR.T)).sum())
    assert abs(found.value - exact) <= 4 * found.stderr


@pytest.mark.usefixtures("by_probes")
def test_a_bad_control_costs_its_pilot_and_changes_nothing_else() -> None:
    operator, control = DenseOperator(MATRIX), DenseOperator(OTHER)
    found = product_trace(operator, LowRankOperator(FACTOR), control=control, rtol=0.02)
    assert control.products == PILOT
    assert operator.products == found.cost - PILOT
    assert found.relative_stderr <= 0.02


@pytest.mark.usefixtures("by_probes")
def test_the_pilot_does_not_enter_the_value() -> None:
    """The gap is 1 for the two draws of the pilot, whose columns come first, and 0 for those that are kept."""
    calls = 0

    class Odd(DenseOperator):
        def quadratic_forms(self, columns: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().quadratic_forms(columns) + (1.0 if calls == 1 else 0.0)

    factor = LowRankOperator(FACTOR)
    plain = product_trace(DenseOperator(MATRIX), factor, control=DenseOperator(MATRIX), rtol=0.05, seed=1)
    odd = product_trace(Odd(MATRIX), factor, control=DenseOperator(MATRIX), rtol=0.05, seed=1)
    assert calls > 1
    assert odd.value == plain.value


def test_where_nothing_is_left_to_probe_the_control_is_not_asked() -> None:
    control = DenseOperator(OTHER)
    few = LowRankOperator(FACTOR[:, :7])
    found = product_trace(DenseOperator(MATRIX), few, control=control)
    assert (found.stderr, found.cost, control.products) == (0, 7, 0)
    assert found.value == pytest.approx(float((MATRIX * few.dense()).sum()), rel=1e-9)


def test_a_control_without_draws_or_of_another_size_is_refused() -> None:
    left, right = DenseOperator(MATRIX, name="A"), DenseOperator(OTHER, name="B")
    with pytest.raises(ValueError, match=r"neither held as factors nor covariances.*leave control out"):
        product_trace(left, right, control=left)
    with pytest.raises(ValueError, match="sizes differ"):
        product_trace(left, LowRankOperator(FACTOR), control=DenseOperator(MATRIX[:9, :9]))
    assert left.products == right.products == 0


def test_gaps_by_draws_are_as_good_as_by_factors() -> None:
    diagonal = DiagonalOperator(SPECTRUM.abs())
    operator, control = DenseOperator(MATRIX), DenseOperator(MATRIX + 1e-4 * OTHER)
    found = product_trace(operator, diagonal, control=control, rtol=0.02, seed=2)
    assert operator.products < 10
    exact = float((MATRIX.diagonal() * SPECTRUM.abs()).sum())
    assert abs(found.value - exact) <= 4 * found.stderr


@pytest.mark.parametrize("name", ["mlp cross-entropy", "no forward mode"])
def test_the_gauss_newton_matrix_is_the_control_where_its_forms_are_cheap(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    risk = case.risk()
    asked: list[SymmetricOperator | None] = []

    def watched(*operators: SymmetricOperator, control: SymmetricOperator | None = None, **options: object):
        asked.append(control)
        return product_trace(*operators, control=control, **options)

    for module in (indicator, recorders):
        monkeypatch.setattr(module, "product_trace", watched)
    ns.measure(risk, case.theta, batch_size=3)
    recorders.indicator(3)(risk, case.theta)
    assert len(asked) == 2
    for control in asked:
        assert (control is not None) is risk.pushes_outputs
        if control is not None:
            torch.testing.assert_close(control.dense(), case.gauss_newton(), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- coverage

COVERED = {
    ("network at a minimum", True): 200,
    ("network at a minimum", False): 200,
    ("matrices, B factored", False): 600,
    ("matrices, B factored, gap 0.02 tolerances", True): 600,
    ("matrices, B factored, gap 1 tolerances", True): 600,
    ("matrices, B factored, gap 100 tolerances", True): 600,
}


def _problem(name: str, control: bool) -> Problem:
    return next(one for one in problems() if one.name == name and (one.control is not None) is control)


@pytest.mark.parametrize(("name", "control"), COVERED)
def test_intervals_cover_and_the_value_is_unbiased_with_a_control_and_without(name: str, control: bool) -> None:
    """To three standard errors each; ``benchmarks/coverage.py`` does it with thousands of seeds."""
    seeds = COVERED[name, control]
    found = measured(_problem(name, control), seeds)
    assert abs(found["coverage_95"] - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / seeds)
    assert abs(found["coverage_50"] - 0.5) <= 3 * math.sqrt(0.25 / seeds)
    assert abs(found["relative_bias"]) <= 3 * found["relative_bias_stderr"]
    # Student's tails: errors somewhat beyond the standard error, most so where eight skewed probes tell it
    assert 0.9 <= found["relative_rmse"] / found["claimed_stderr"] <= 1.5


def test_skewed_probes_have_fewer_degrees_of_freedom_and_intervals_that_cover() -> None:
    """Squares of two normal numbers: skewness 2. With n − 1 degrees of freedom eight of them cover 90 %."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> Tensor:
        return torch.randn(count, 2, generator=generator, dtype=F64).square().sum(1)

    def normals(count: int) -> Tensor:
        return torch.randn(count, generator=generator, dtype=F64)

    found = {
        law: [
            mean_of_probes(one, offset=torch.tensor(100.0, dtype=F64), rtol=1.0, max_probes=100, what="x")
            for _ in range(1500)
        ]
        for law, one in (("skewed", draw), ("normal", normals))
    }
    for law, mean in (("skewed", 2.0), ("normal", 0.0)):
        estimates = [ns.Estimate(float(one.mean), float(one.stderr), dof=one.dof) for one in found[law]]
        covered = np.mean([low <= mean <= high for low, high in (one.interval() for one in estimates)])
        assert 0.93 <= covered <= 0.97
    typical = {law: float(np.median([one.dof for one in of_law])) for law, of_law in found.items()}
    assert typical["skewed"] < typical["normal"] - 1 < FIRST_STAGE - 1
    assert all(one.dof <= FIRST_STAGE - 1 for of_law in found.values() for one in of_law)


def test_an_operator_by_products_only_takes_a_control_too() -> None:
    operator = FunctionOperator(lambda block: MATRIX @ block, SIZE, dtype=F64, device="cpu", name="H")
    noise = DiagonalOperator(SPECTRUM.abs())
    found = product_trace(operator, noise, control=DenseOperator(MATRIX), rtol=0.03)
    assert operator.products == PILOT + KEPT
    assert found.stderr > 0
