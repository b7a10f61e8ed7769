"""The real image sets, where NOISESCAPE_DATA has them, against what is published of them."""

from __future__ import annotations

import os

import pytest
import torch

from noisescape.experiments.data import image_split
from noisescape.experiments.images import Split, open_images

REAL = os.environ.get("NOISESCAPE_DATA")
real = pytest.mark.skipif(not REAL, reason="NOISESCAPE_DATA names no directory with the real data sets")


@real
@pytest.mark.parametrize(
    ("name", "split", "counts", "first"),
    [
        ("fashion_mnist", "train", [6000] * 10, [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("fashion_mnist", "test", [1000] * 10, [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
        ("cifar10", "train", [5000] * 10, None),  # in an order of its own
        ("cifar10", "test", [1000] * 10, None),
        ("svhn", "train", None, [1, 9, 2, 3, 2, 5, 9, 3, 3, 1]),
    ],
)
def test_real_labels(name: str, split: Split, counts: list[int] | None, first: list[int] | None) -> None:
    opened = open_images(name, split, REAL)
    if counts:
        assert opened.complete
        assert torch.bincount(opened.labels).tolist() == counts
    elif not opened.complete:
        assert opened.count == 1083
        found = torch.bincount(opened.labels).tolist()
        assert found == [66, 227, 141, 134, 110, 112, 78, 70, 78, 67]
    if first:
        assert opened.labels[:10].tolist() == first


@real
@pytest.mark.parametrize(
    ("name", "shape", "options", "mean"),
    [
        ("fashion_mnist", (1, 28, 28), {}, 0.2860),
        ("fashion_mnist", (1, 14, 14), {"size": 14}, 0.2860),
        ("cifar10", (3, 32, 32), {}, 0.4734),
        ("cifar10", (3, 16, 16), {"size": 16}, 0.4734),
        ("svhn", (3, 32, 32), {}, None),
    ],
)
def test_real_pixels(name: str, shape: tuple[int, ...], options: dict[str, int], mean: float | None) -> None:
    split = image_split(name, seed=0, clean=800, test=100, data_dir=REAL, pixel_range=(0.0, 1.0), **options)
    assert split.images.shape == (800, *shape)
    assert split.test_images.shape == (100, *shape)
    assert 0 <= float(split.images.min()) < 0.1
    assert 0.9 < float(split.images.max()) <= 1
    if mean is not None:  # as published for the whole training split; images are the independent draws
        means = split.images.flatten(1).mean(1)
        assert abs(float(means.mean()) - mean) < 4 * float(means.std()) / 800**0.5
