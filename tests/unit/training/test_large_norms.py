"""Norms of tensors so large that single precision, adding squares one after another, loses some."""

from __future__ import annotations

import math

import pytest
import torch

from noisescape.training.gradient_norms import BLOCK, norm


@pytest.mark.parametrize("size", [BLOCK, BLOCK + 1, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_a_large_gradient_is_that_of_its_numbers(size: int, dtype: torch.dtype) -> None:
    found = norm(torch.full((size,), 1e-3, dtype=dtype))
    wanted = float(torch.tensor(1e-3, dtype=dtype)) * math.sqrt(size)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(wanted, rel=3e-5)
