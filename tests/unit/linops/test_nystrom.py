"""Nyström pairs from a block and its products."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cases import F64, normal, symmetric
from noisescape.linops import nystrom_pairs

SIZE = 60
DECAYING = 2.0 ** -torch.arange(SIZE, dtype=F64)


def test_nystrom_is_exact_on_the_span_it_was_made_from() -> None:
    matrix = symmetric(SIZE, torch.cat([DECAYING[:4], torch.zeros(SIZE - 4, dtype=F64)]), seed=5)
    top = torch.linalg.eigh(matrix).eigenvectors[:, -4:]
    mixed = top @ torch.linalg.qr(normal(4, 4, seed=6)).Q
    values, vectors, carried = nystrom_pairs(mixed, matrix @ mixed, 4)
    assert_close(values, DECAYING[:4], rtol=1e-10, atol=1e-12)
    assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-9, atol=1e-11)
    assert float(carried) == pytest.approx(float(values.sum()))


def test_nystrom_drops_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([4.0, 1.0, -2.0, 0.0], dtype=F64))
    basis = torch.eye(4, 3, dtype=F64)
    values, vectors, carried = nystrom_pairs(basis, matrix @ basis, 3)
    assert_close(values, torch.tensor([4.0, 1.0, 0.0], dtype=F64))
    assert not vectors[:, 2].any()
    assert float(carried) == 5


def test_nystrom_passes_nan_on() -> None:
    values, vectors, _ = nystrom_pairs(torch.eye(4, 2), torch.full((4, 2), torch.nan), 2)
    assert values.isnan().all()
    assert vectors.isnan().all()
