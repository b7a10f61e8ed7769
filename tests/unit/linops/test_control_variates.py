"""What a control variate changes: the products spent, never the value that is estimated."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

import noisescape as ns
from cases import CASES, F64, normal, symmetric
from internals import decided
from networks import exact_indicator, fitted_risk
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    LowRankOperator,
    SymmetricOperator,
    ToleranceWarning,
    product_trace,
)
from noisescape.linops.control_variate import KEPT, PILOT
from noisescape.measurement import indicator
from noisescape.simulation import recorders

SIZE = 120
SPECTRUM = torch.cat([torch.tensor([20.0, 8, -5]), torch.linspace(-1, 2, SIZE - 3)]).to(F64)
MATRIX = symmetric(SIZE, SPECTRUM, seed=1)
OTHER = symmetric(SIZE, SPECTRUM.flip(0), seed=2)
COLUMNS = normal(SIZE, 40, seed=3)
PSD = symmetric(SIZE, SPECTRUM.abs(), seed=4)


@pytest.mark.usefixtures("by_probes")
def test_of_a_control_like_the_operator_four_products_are_all_that_the_operator_spends() -> None:
    operator, control = DenseOperator(MATRIX), DenseOperator(MATRIX + 1e-9 * OTHER)
    found = product_trace(operator, LowRankOperator(COLUMNS), control=control, rtol=0.02)
    assert operator.products == PILOT + KEPT
    assert found.cost == operator.products + control.products
    exact = float((MATRIX * (COLUMNS @ COLUMNS.T)).sum())
    assert abs(found.value - exact) <= 4 * found.stderr


@pytest.mark.usefixtures("by_probes")
def test_a_bad_control_costs_its_pilot_and_changes_nothing_else() -> None:
    operator, control = DenseOperator(MATRIX), DenseOperator(OTHER)
    found = product_trace(operator, LowRankOperator(COLUMNS), control=control, rtol=0.02)
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

    factor = LowRankOperator(COLUMNS)
    plain = product_trace(DenseOperator(MATRIX), factor, control=DenseOperator(MATRIX), rtol=0.05, seed=1)
    odd = product_trace(Odd(MATRIX), factor, control=DenseOperator(MATRIX), rtol=0.05, seed=1)
    assert calls > 1
    assert odd.value == plain.value


def test_where_nothing_is_left_to_probe_the_control_is_not_asked() -> None:
    control = DenseOperator(OTHER)
    few = LowRankOperator(COLUMNS[:, :7])
    found = product_trace(DenseOperator(MATRIX), few, control=control)
    assert (found.stderr, found.cost, control.products) == (0, 7, 0)
    assert found.value == pytest.approx(float((MATRIX * few.dense()).sum()), rel=1e-9)


def test_a_control_without_draws_or_of_another_size_is_refused() -> None:
    left, right = DenseOperator(MATRIX, name="A"), DenseOperator(OTHER, name="B")
    with pytest.raises(ValueError, match=r"neither held as factors nor covariances.*leave control out"):
        product_trace(left, right, control=left)
    with pytest.raises(ValueError, match="sizes differ"):
        product_trace(left, LowRankOperator(COLUMNS), control=DenseOperator(MATRIX[:9, :9]))
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
        assert (control is not None) is decided(risk, "gauss_newton_forms")
        if control is not None:
            torch.testing.assert_close(control.dense(), case.gauss_newton(), rtol=1e-9, atol=1e-12)


def test_an_operator_by_products_only_takes_a_control_too() -> None:
    operator = FunctionOperator(lambda block: MATRIX @ block, SIZE, dtype=F64, device="cpu", name="H")
    noise = DiagonalOperator(SPECTRUM.abs())
    found = product_trace(operator, noise, control=DenseOperator(MATRIX), rtol=0.03)
    assert operator.products == PILOT + KEPT
    assert found.stderr > 0


@pytest.mark.parametrize("residual", [1e-4, 1.0], ids=["fitted", "not fitted"])
@pytest.mark.usefixtures("by_probes")
def test_a_fitted_networks_product_trace_takes_few_hessian_products(residual: float) -> None:
    risk, theta = fitted_risk(residual)
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
    exact = exact_indicator(residual)
    assert abs(estimate.value - exact) <= stats.t.isf(3e-5, estimate.dof) * estimate.stderr
    if residual < 1:
        assert estimate.cost > 2 * (PILOT + KEPT) + 4


def test_a_budget_too_small_for_a_control_is_spent_on_the_hessian() -> None:
    risk, theta = fitted_risk(1e-4)
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
