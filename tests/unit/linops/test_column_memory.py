"""Estimates hold fewer columns where these are long."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cases import F64, CountedOperator, normal, symmetric
from noisescape.linops import LowRankOperator, product_trace, trace

SIZE = 60
DECAYING = 2.0 ** -torch.arange(SIZE, dtype=F64)


def test_estimates_hold_fewer_columns_where_they_are_long(column_bytes: Callable[[int], None]) -> None:
    """With room for three columns all is done one at a time, and the figures still hold."""
    matrix = symmetric(SIZE, 1 + DECAYING, seed=7)
    factor = normal(SIZE, 40, seed=8)
    exact = float((matrix * (factor @ factor.T)).sum())
    column_bytes(3 * SIZE * 8)
    counted = CountedOperator(matrix)
    for found, wanted in (
        (product_trace(counted, LowRankOperator(factor), rtol=0.02), exact),
        (trace(counted, rtol=0.02, deflate=2), float(matrix.trace())),
    ):
        assert abs(found.value - wanted) <= 4 * found.stderr
        assert found.relative_stderr <= 0.02
    assert max(counted.columns) <= 2
