"""Which operand of a product trace comes first changes neither value nor cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from cases import F64, WIDER, normal, symmetric
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    IsotropicOperator,
    LowRankOperator,
    SymmetricOperator,
    product_trace,
)
from slowness import quick

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


PAIRS = [*itertools.combinations(OPERANDS, 2)]


@pytest.mark.parametrize(("one", "other"), quick(PAIRS[::4], PAIRS))
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
