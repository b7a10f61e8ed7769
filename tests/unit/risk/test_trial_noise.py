"""The noise that a model is moved by before it is tried."""

from __future__ import annotations

import torch

from noisescape.risk.trial import PERIOD, noise


def test_it_is_standard_normal_and_the_same_each_time() -> None:
    one = noise(100_000, 3)
    assert torch.equal(one, noise(100_000, 3))
    assert not torch.equal(one, noise(100_000, 4))
    assert abs(float(one.mean())) < 0.02
    assert abs(float(one.std()) - 1) < 0.02


def test_beyond_its_period_no_two_rows_of_a_matrix_are_alike() -> None:
    """Rows of 4,096 numbers would be, had the period that length as a factor."""
    found = noise(2 * PERIOD + 4096, 0)
    assert len(found) == 2 * PERIOD + 4096
    rows = found[: 512 * 4096].view(512, 4096)
    apart = torch.cdist(rows, rows) + 1e6 * torch.eye(512)
    assert float(apart.min()) > 60
