"""Norms of tensors so large that single precision, adding squares one after another, loses some."""

from __future__ import annotations

import pytest
import torch

from noisescape.linops.tall import LONGEST
from noisescape.training.gradient_norms import norm
from slowness import quick


@pytest.mark.parametrize("size", quick([LONGEST, LONGEST + 1], [2**24]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_a_large_gradient_is_that_of_its_numbers(size: int, dtype: torch.dtype) -> None:
    gradient = (1e-3 * torch.randn(size, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = norm(gradient)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(gradient.double().square().sum().sqrt()), rel=1e-5)
