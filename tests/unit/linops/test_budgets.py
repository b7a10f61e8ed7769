"""``max_products`` is a bound: every estimator against every budget, products counted in every operand."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import CASES, F64, normal, symmetric
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    Eigenpairs,
    Estimate,
    FunctionOperator,
    LowRankOperator,
    SymmetricOperator,
    ToleranceWarning,
    VectorEstimate,
    diagonal,
    eigenpairs,
    product_trace,
    squared_norm,
    trace,
)
from slowness import quick

SIZE = 160
SPECTRUM = torch.cat([torch.tensor([20.0, 8, -5]), torch.linspace(-1, 2, SIZE - 3)]).to(F64)
MATRIX = symmetric(SIZE, SPECTRUM, seed=1)
OTHER = symmetric(SIZE, SPECTRUM.flip(0), seed=2)
FACTOR = normal(SIZE, 40, seed=3)
BASIS = torch.linalg.qr(normal(SIZE, 30, seed=4)).Q


def operator(matrix: Tensor, *, draws: Tensor | None = None, name: str = "A") -> FunctionOperator:
    """A matrix that is known by its products only; given a root, one that is drawn from cheaply."""

    def sampler(count: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(count, draws.shape[1], generator=generator, dtype=F64) @ draws.T

    return FunctionOperator(
        lambda block: matrix @ block,
        len(matrix),
        dtype=F64,
        device="cpu",
        psd=draws is not None,
        sampler=None if draws is None else sampler,
        name=name,
    )


def of(size: int) -> FunctionOperator:
    return operator(MATRIX[:size, :size])


Operators = list[SymmetricOperator]
Call = Callable[[Operators, int], Estimate | VectorEstimate | Eigenpairs]


def _trace_of_product(operators: Operators, budget: int, **options: object) -> Estimate:
    left, right, *control = operators
    return product_trace(
        left, right, control=control[0] if control else None, rtol=1e-3, max_products=budget, **options
    )


def _pairs(k: int, which: str = "largest") -> Call:
    return lambda operators, budget: eigenpairs(operators[0], k, which=which, max_products=budget)


BUDGETED: dict[str, tuple[Callable[[], Operators], Call]] = {
    "trace": (lambda: [of(SIZE)], lambda ops, budget: trace(*ops, rtol=1e-3, max_products=budget)),
    "trace of a small matrix": (lambda: [of(30)], lambda ops, budget: trace(*ops, rtol=1e-3, max_products=budget)),
    "trace off given directions": (
        lambda: [of(SIZE)],
        lambda ops, budget: trace(*ops, deflate=BASIS, rtol=1e-3, max_products=budget),
    ),
    "squared norm": (lambda: [of(SIZE)], lambda ops, budget: squared_norm(*ops, rtol=1e-3, max_products=budget)),
    "diagonal": (lambda: [of(SIZE)], lambda ops, budget: diagonal(*ops, rtol=1e-3, max_products=budget)),
    "diagonal of a small matrix": (
        lambda: [of(15)],
        lambda ops, budget: diagonal(*ops, rtol=1e-3, max_products=budget),
    ),
    "product trace by signs": (lambda: [of(SIZE), operator(OTHER, name="B")], _trace_of_product),
    "product trace by draws": (
        lambda: [of(SIZE), operator(FACTOR @ FACTOR.T, draws=FACTOR)],
        _trace_of_product,
    ),
    "product trace over known directions": (
        lambda: [of(SIZE), DiagonalOperator(SPECTRUM.abs())],
        _trace_of_product,
    ),
    "product trace over factors": (lambda: [of(SIZE), LowRankOperator(FACTOR)], _trace_of_product),
    "product trace over factors, given first": (lambda: [LowRankOperator(FACTOR), of(SIZE)], _trace_of_product),
    "product trace over few factors": (lambda: [of(SIZE), LowRankOperator(FACTOR[:, :9])], _trace_of_product),
    "product trace with a good control": (
        lambda: [of(SIZE), LowRankOperator(FACTOR), operator(MATRIX + 1e-6 * OTHER)],
        _trace_of_product,
    ),
    "product trace with a bad control": (
        lambda: [of(SIZE), LowRankOperator(FACTOR), operator(OTHER)],
        _trace_of_product,
    ),
    "product trace with a middling control": (
        lambda: [of(SIZE), LowRankOperator(FACTOR), operator(MATRIX + 5e-4 * OTHER)],
        _trace_of_product,
    ),
    "product trace by draws with a control": (
        lambda: [of(SIZE), operator(FACTOR @ FACTOR.T, draws=FACTOR), operator(MATRIX + 1e-6 * OTHER)],
        _trace_of_product,
    ),
    "product trace of small matrices": (lambda: [of(20), operator(OTHER[:20, :20])], _trace_of_product),
    "product trace of an operator with itself": (lambda: [of(SIZE)] * 2, _trace_of_product),
    "product trace of a network": (
        lambda: [
            CASES["conv"].risk().hessian(CASES["conv"].theta),
            CASES["conv"].risk().noise_covariance(CASES["conv"].theta, 3),
            CASES["conv"].risk().gauss_newton(CASES["conv"].theta),
        ],
        lambda ops, budget: _trace_of_product(ops, budget, deflate=4),
    ),
    "largest eigenpairs": (lambda: [of(SIZE)], _pairs(3)),
    "smallest eigenpair": (lambda: [of(SIZE)], _pairs(1, "smallest")),
    "eigenpairs by magnitude": (lambda: [of(SIZE)], _pairs(2, "magnitude")),
    "eigenpairs of a small matrix": (lambda: [of(40)], _pairs(3)),
    "all eigenpairs": (lambda: [of(10)], _pairs(10)),
    "eigenpairs from structure": (lambda: [LowRankOperator(FACTOR)], _pairs(4)),
}
BUDGETS = (2, 3, 4, 5, 6, 7, 8, 11, 12, 16, 20, 24, 31, 40, 41, 52, 64, 80, 100, 163, 200, 400)


@pytest.mark.parametrize("budget", quick(BUDGETS[::3], BUDGETS))
@pytest.mark.parametrize("name", BUDGETED)
def test_no_more_products_are_spent_than_allowed_and_the_cost_is_what_was_spent(name: str, budget: int) -> None:
    make, call = BUDGETED[name]
    operators = make()
    found: Estimate | VectorEstimate | Eigenpairs | None = None
    refused = unfinished = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)
            found = call(operators, budget)
    except ValueError as error:
        refused = str(error)
    except RuntimeError as error:
        unfinished = str(error)
    spent = sum({id(one): one.products for one in operators}.values())
    assert spent <= budget
    if refused:
        assert f"max_products = {budget} is too few" in refused
        assert "allow at least" in refused
        assert spent == 0, "refused before work starts"
    if unfinished:
        assert f"within {budget} products" in unfinished
    if found is not None:
        assert found.cost == spent
    if isinstance(found, Estimate):
        assert math.isfinite(found.value)
        assert found.stderr > 0 or found.dof == math.inf
    if not isinstance(found, Eigenpairs) and "eigenpair" not in name:
        least = 4 if name in ("product trace by signs", "product trace of an operator with itself") else 2
        least = 4 if name == "product trace of small matrices" else least
        assert (found is None) is (budget < least)


def test_a_refused_budget_is_enough_once_what_the_message_says_is_allowed() -> None:
    for name in ("product trace by signs", "eigenpairs of a small matrix", "all eigenpairs", "largest eigenpairs"):
        make, call = BUDGETED[name]
        with pytest.raises(ValueError, match="allow at least") as caught:
            call(make(), 2)
        least = int(str(caught.value).rpartition("at least ")[2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)
            with contextlib.suppress(RuntimeError):  # begun, though it may not converge
                call(make(), least)


@pytest.mark.parametrize("budget", [4, 12, 40, 100])
def test_estimates_on_a_small_budget_are_right_within_their_error(budget: int) -> None:
    exact = float((MATRIX * (FACTOR @ FACTOR.T)).sum())
    scores = []
    for seed in range(60):
        with pytest.warns(ToleranceWarning):
            found = product_trace(
                DenseOperator(MATRIX), LowRankOperator(FACTOR), rtol=1e-6, max_products=budget, seed=seed
            )
        low, high = found.interval()
        scores.append(low <= exact <= high)
    assert sum(scores) >= 60 * 0.95 - 4 * math.sqrt(60 * 0.95 * 0.05)
