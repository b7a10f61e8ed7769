"""Checksums of the data, and the unlike samples that a model is tried on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noisescape.risk.samples import TensorSamples, digest
from noisescape.risk.trial_samples import features, spread
from sample_data import X, Y


@pytest.mark.parametrize(
    "tensor",
    [
        X,
        X.T,
        X.half(),
        X.bfloat16(),
        Y,
        X > 0,
        X + 1j * X,
        (X + 1j * X).conj(),
        X[0, 0],
        X[:0],
        (1j * X).conj().imag,
    ],
)
def test_a_checksum_is_of_values_shape_and_dtype(tensor: Tensor) -> None:
    assert digest(tensor) == digest(tensor.clone())
    if tensor.numel():
        other = tensor.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
        other.view(-1)[-1] = 1 if tensor.dtype == torch.bool and not bool(other.view(-1)[-1]) else 0
        assert digest(other) != digest(tensor)
        assert digest(tensor[None]) != digest(tensor)


def test_unlike_samples_are_found_among_large_numbers_and_none() -> None:
    x = torch.ones(20, 3, dtype=torch.float32)
    x[4], x[11], x[15, 0] = 0, 3e38, torch.nan
    pool = TensorSamples(x, torch.zeros(20, dtype=torch.long))
    found = features(pool)
    assert bool(found.isfinite().all())
    order = spread(found, 20).tolist()
    assert sorted(order) == list(range(20))
    assert {4, 11} <= set(order[:4])
