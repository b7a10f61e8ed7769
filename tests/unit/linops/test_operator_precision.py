"""Half precision is refused with the mend, and autocast changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import CASES, normal
from matrices import PSD, SIZE, SPREAD
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    LowRankOperator,
    SymmetricOperator,
    diagonal,
    eigenpairs,
    product_trace,
    spectral_density,
    squared_norm,
    trace,
)
from slowness import quick

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
        "dense": lambda: DenseOperator(PSD.to(dtype)),
        "diagonal": lambda: DiagonalOperator(SPREAD.to(dtype)),
        "low rank": lambda: LowRankOperator(normal(SIZE, 4, seed=14).to(dtype)),
        "scaled": lambda: 2 * DenseOperator(PSD.to(dtype)),
    }[kind]()
    with pytest.raises(TypeError, match=rf"is of {dtype}.*\.to\(torch\.float32\)"):
        EVERY[name](operator)
    assert operator.products == 0


def test_a_half_precision_control_or_second_operand_is_refused() -> None:
    single, half = (DenseOperator(PSD.to(dtype)) for dtype in (torch.float32, torch.bfloat16))
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
        "dense": DenseOperator(PSD.float(), psd=True),
        "low rank": LowRankOperator(normal(SIZE, 40, seed=15).float()),
        "diagonal": DiagonalOperator(SPREAD.float()),
        "scaled": 0.5 * LowRankOperator(normal(SIZE, 40, seed=15).float()),
        "sum": DenseOperator(PSD.float(), psd=True) + DiagonalOperator(SPREAD.float()),
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
@pytest.mark.parametrize("kind", quick(["dense", "noise covariance"], _single()))
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
