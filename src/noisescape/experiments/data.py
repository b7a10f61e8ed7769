"""The data sets of the experiments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisescape.errors import InvalidValueError, MissingSplitError
from noisescape.experiments.images import LabelledImages, open_images


@dataclass(frozen=True)
class ImageSplit:
    """A training set, part of it with random labels, and a clean test set.

    Attributes:
        images: float32, (N, channels, height, width), pixels in [−1, 1] or as asked; the corrupted ones come last.
        labels: (N,), as trained on.
        corrupted: bool, (N,): whose label was drawn at random (and may be right by chance).
        test_images: as ``images``.
        test_labels: true ones.
        rows: int64, (N,): each training image's row in its source.
        test_rows: as ``rows``, in the test set's source.
        facts: what a run stores: the sources ``train`` and ``test``, and ``test_selection``, how the test images
            were chosen from theirs.
    """

    images: Tensor
    labels: Tensor
    corrupted: Tensor
    test_images: Tensor
    test_labels: Tensor
    rows: Tensor
    test_rows: Tensor
    facts: dict[str, Any]

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
        raise InvalidValueError(
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
    rows = torch.from_numpy(order).long()
    source = {"name": "digits", "source": "sklearn.datasets.load_digits", "rows": len(labels), "complete": True}
    return ImageSplit(
        images=pixels[:size],
        labels=torch.from_numpy(train_labels).long(),
        corrupted=torch.arange(size) >= clean,
        test_images=pixels[size:],
        test_labels=torch.from_numpy(labels[size:]).long(),
        rows=rows[:size],
        test_rows=rows[size:],
        facts={"train": source, "test": source, "test_selection": "all that are not trained on"},
    )


def image_split(
    name: str,
    *,
    seed: int,
    clean: int,
    corrupted: int = 0,
    test: int | None = None,
    data_dir: str | Path | None = None,
    size: int | None = None,
    pixel_range: tuple[float, float] = (-1.0, 1.0),
    exchanged: bool = False,
    in_order: bool = False,
) -> ImageSplit:
    """A training set with some random labels from one of ``images.IMAGE_SETS``, and a clean test set.

    Where the source has only a part of the training split and no test split, the test images are a contiguous block
    of the training rows, at a position drawn from the seed, and the training images come from the others.
    Neighbouring rows of SVHN are often digits of one photograph, which single rows drawn at random would put on
    both sides; a block does so at its two ends at most.

    Args:
        name: of the data set.
        seed: of the images drawn (without replacement) and of the random labels.
        clean: training images with their own label.
        corrupted: training images with a uniformly random label of all classes.
        test: test images, drawn without replacement; by default the whole test split.
        data_dir: as in `noisescape.experiments.images.open_images`.
        size: height and width to shrink to, a divisor of the original side: 14 or 7 of 28, 16 or 8 of 32. Each new
            pixel is the mean of the square it replaces.
        pixel_range: what 0 and 255 become; linear in between.
        exchanged: train on images of the test split and test on those of the training split. Both must be there.
        in_order: train on the first images of the file, in its order, in place of those that the seed draws.

    Raises:
        DataError: something is wrong with the data set or its directory.
        ValueError: more images asked for than there are, or a size or range that cannot be.
    """
    low, high = pixel_range
    if not -np.inf < low < high < np.inf:
        raise InvalidValueError(f"pixel_range must be finite and increasing, not ({low}, {high})")
    source = open_images(name, "test" if exchanged else "train", data_dir)
    side = source.about.size
    if size is not None and (size < 1 or side % size):
        divisors = ", ".join(str(divisor) for divisor in range(1, side + 1) if side % divisor == 0)
        raise InvalidValueError(
            f"{name} cannot be shrunk to size {size}: its side is {side}, so size is one of {divisors}"
        )
    test_source = open_images(name, "train", data_dir) if exchanged else _test_split(source, data_dir)
    if test_source is None and test is None:
        raise InvalidValueError(
            f"{name} has no test split here: say with test how many of {source.count} rows to test on"
        )
    for_test = source.count - 1 if test_source is None else test_source.count
    test = for_test if test is None else test
    if not 0 < test <= for_test:
        raise InvalidValueError(f"{test} test images asked for; {name} has {for_test} for test")
    for_training = source.count - test if test_source is None else source.count
    if clean < 0 or corrupted < 0 or not 0 < clean + corrupted <= for_training:
        beside = f" beside {test} for test" if test_source is None else ""
        raise InvalidValueError(
            f"{clean} clean + {corrupted} corrupted training images asked for; {name} has {for_training}{beside}"
        )

    generator = np.random.default_rng(seed)
    others = np.arange(source.count)
    if test_source is None:
        first = int(generator.integers(0, for_training + 1))
        chosen, selection = np.arange(first, first + test), f"a block of the training rows, from {first} on"
        others = np.delete(others, chosen)
    elif test < for_test:
        chosen, selection = generator.permutation(for_test)[:test], "drawn by the seed"
    else:
        chosen, selection = np.arange(test), "all"
    # the labels are drawn last, so the images do not depend on how many labels are random
    order = others if in_order else generator.permutation(others)
    rows = torch.from_numpy(order[: clean + corrupted])
    labels = source.labels[rows]
    labels[clean:] = torch.from_numpy(generator.integers(0, source.about.classes, corrupted))
    test_rows = torch.from_numpy(chosen)
    test_source = test_source or source
    return ImageSplit(
        images=_scaled(source.pixels(rows), size or side, low, high),
        labels=labels,
        corrupted=torch.arange(len(rows)) >= clean,
        test_images=_scaled(test_source.pixels(test_rows), size or side, low, high),
        test_labels=test_source.labels[test_rows],
        rows=rows,
        test_rows=test_rows,
        facts={"train": source.facts(), "test": test_source.facts(), "test_selection": selection},
    )


def _test_split(source: LabelledImages, data_dir: str | Path | None) -> LabelledImages | None:
    """The test split, or none where there is only a part of the training split."""
    try:
        return open_images(source.about.name, "test", data_dir)
    except MissingSplitError:
        if source.complete:
            raise
        return None


def _scaled(pixels: Tensor, size: int, low: float, high: float) -> Tensor:
    """Means of squares of pixels, (n, channels, size, size) in float32, with 0 at ``low`` and 255 at ``high``."""
    n, channels, side, _ = pixels.shape
    squares = pixels.view(n, channels, size, side // size, size, side // size)
    return squares.mean((3, 5), dtype=torch.float32).div_(255).mul_(high - low).add_(low)
