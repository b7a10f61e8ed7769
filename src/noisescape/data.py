"""The data sets of the experiments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSplit:
    """A training set, part of it with random labels, and a clean test set.

    Attributes:
        images: (N, channels, height, width), pixels in [−1, 1]; the corrupted ones come last.
        labels: (N,), as trained on.
        corrupted: bool, (N,): whose label was drawn at random (and may be right by chance).
        test_images: as ``images``.
        test_labels: true ones.
    """

    images: Tensor
    labels: Tensor
    corrupted: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """(images, labels) to train on."""
        return self.images, self.labels

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """(images, labels) to test on."""
        return self.test_images, self.test_labels


def corrupted_digits(*, seed: int, clean: int = 1000, corrupted: int = 200) -> ImageSplit:
    """scikit-learn's 1,797 handwritten 8 × 8 digits: a training set with some random labels, the rest for test.

    Args:
        seed: of the shuffle and of the random labels.
        clean: training images with their own label.
        corrupted: training images with a uniformly random label of the ten.

    Raises:
        ValueError: more images asked for than there are, or no test image left.
    """
    from sklearn.datasets import load_digits  # slow to import, and only this needs it

    images, labels = load_digits(return_X_y=True)
    if clean < 0 or corrupted < 0 or not 0 < clean + corrupted < len(labels):
        raise ValueError(
            f"{clean} clean + {corrupted} corrupted training images asked for; the digits hold {len(labels)} "
            "and at least one must remain for test"
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    images, labels = images[order], labels[order]
    size = clean + corrupted
    train_labels = labels[:size].copy()
    train_labels[clean:] = generator.integers(0, 10, corrupted)
    pixels = torch.from_numpy(images.astype(np.float32)).view(-1, 1, 8, 8) / 8 - 1
    return ImageSplit(
        images=pixels[:size],
        labels=torch.from_numpy(train_labels).long(),
        corrupted=torch.arange(size) >= clean,
        test_images=pixels[size:],
        test_labels=torch.from_numpy(labels[size:]).long(),
    )
