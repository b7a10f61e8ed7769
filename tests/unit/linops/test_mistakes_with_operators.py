"""What a newcomer gets wrong with operators, and the error that says what to do: one row a mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cases import F64
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    Estimate,
    diagonal,
    eigenpairs,
    product_trace,
    spectral_density,
    trace,
)

A = DenseOperator(torch.diag(torch.arange(40.0, dtype=F64) - 3))
SMALL = DiagonalOperator(torch.ones(3, dtype=F64))
OPERATORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "k of zero": (lambda: eigenpairs(A, 0), ValueError, r"k = 0 eigenpairs.*1\.\.40"),
    "k over D": (lambda: eigenpairs(A, 41), ValueError, r"k = 41 .*1\.\.40"),
    "unknown end of the spectrum": (
        lambda: eigenpairs(A, 1, which="LM"),
        ValueError,
        r"which must be one of.*largest.*'LM'",
    ),
    "rtol of zero": (lambda: trace(A, rtol=0), ValueError, r"rtol .*must be positive, not 0"),
    "negative rtol": (lambda: product_trace(A, A, rtol=-0.1), ValueError, r"rtol .*-0\.1"),
    "rtol that is no number": (lambda: diagonal(A, rtol=float("nan")), ValueError, r"rtol .*nan"),
    "too small a budget": (
        lambda: trace(A, max_products=1),
        ValueError,
        r"max_products must allow at least 2",
    ),
    "sizes that differ": (lambda: product_trace(A, SMALL), ValueError, r"cannot multiply.*sizes differ"),
    "dtypes that differ": (
        lambda: product_trace(SMALL, DiagonalOperator(torch.ones(3))),
        ValueError,
        r"cannot multiply.*dtypes",
    ),
    "sum of sizes that differ": (lambda: A + SMALL, ValueError, r"cannot add.*sizes differ"),
    "sum of dtypes that differ": (
        lambda: SMALL + DiagonalOperator(torch.ones(3)),
        ValueError,
        r"cannot add.*dtypes",
    ),
    "one probe": (lambda: spectral_density(A, probes=1), ValueError, r"standard error needs at least 2"),
    "bandwidth of zero": (
        lambda: spectral_density(A, bandwidth=0),
        ValueError,
        r"bandwidth must be positive",
    ),
    "vector of the wrong length": (
        lambda: A @ torch.ones(3, dtype=F64),
        ValueError,
        r"matrix is 40 × 40; it multiplies a vector \(40,\)",
    ),
    "row vector": (lambda: A @ torch.ones(1, 40, dtype=F64), ValueError, r"columns \(40, K\).*\(1, 40\)"),
    "vector of the wrong dtype": (
        lambda: A @ torch.ones(40),
        ValueError,
        r"holds torch\.float64 on cpu, but was given torch\.float32",
    ),
    "vector on another device": (
        lambda: A @ torch.ones(40, dtype=F64, device="meta"),
        ValueError,
        r"on cpu, but was given .* meta",
    ),
    "array of numpy": (
        lambda: A @ torch.ones(40, dtype=F64).numpy(),
        TypeError,
        r"takes a torch\.Tensor.*ndarray",
    ),
    "draws from an indefinite matrix": (
        lambda: A.sample(1),
        ValueError,
        r"not known to be positive semi-definite",
    ),
    "matrix that is not square": (
        lambda: DenseOperator(torch.ones(2, 3)),
        ValueError,
        r"must be square, not of shape \(2, 3\)",
    ),
    "matrix that is not symmetric": (
        lambda: DenseOperator(torch.tensor([[0.0, 1.0], [2.0, 0.0]])),
        ValueError,
        r"not symmetric; pass",
    ),
    "matrix too large to form": (
        lambda: DiagonalOperator(torch.ones(20_001)).dense(),
        ValueError,
        r"20001 × 20001, too large to form",
    ),
    "level of an interval": (
        lambda: Estimate(1.0, 0.1).interval(95),
        ValueError,
        r"strictly between 0 and 1, not 95",
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_mistake_with_operators_gets_an_error_that_names_it_and_the_mend(name: str) -> None:
    make, error, message = OPERATORS[name]
    with pytest.raises(error, match=message):
        make()
