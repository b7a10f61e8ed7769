"""What a repetition of an image experiment trains on, and the record of it that a run keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from noisescape.experiments.data import ImageSplit, corrupted_digits, image_split
from noisescape.experiments.models import digits_net
from noisescape.experiments.statistics import derived_seed
from noisescape.risk import EmpiricalRisk, ample_budget


@dataclass(frozen=True)
class Problem:
    """One repetition's risks, the network freshly initialised.

    Attributes:
        model: the network, at its initialisation.
        risk: of the training images.
        test: of the test images.
        split: the images and where they are from.
    """

    model: nn.Module
    risk: EmpiricalRisk
    test: EmpiricalRisk
    split: ImageSplit


MakeProblem = Callable[[Any, int], Problem]
"""(config, repetition) ↦ its problem."""


def classification(model: nn.Module, split: ImageSplit, device: str) -> Problem:
    """Cross-entropy of a network on a split."""
    train, test = ((images.to(device), labels.to(device)) for images, labels in (split.train, split.test))
    model = model.to(device)
    risk = EmpiricalRisk(model, nn.functional.cross_entropy, train, memory_budget=ample_budget(device))
    return Problem(model, risk, risk.with_data(test), split)


def one_hot_regression(model: nn.Module, split: ImageSplit, classes: int, device: str) -> Problem:
    """Squared distance of a network's outputs to the one-hot labels, averaged over the outputs, on a split.

    ℓ_n = (1/K) Σ_k (f_k(x_n) − [y_n = k])² for K classes, as PyTorch's ``MSELoss`` has it. Gradients and curvature
    are 1/K of those of the squared distance.
    """
    model = model.to(device)

    def as_told(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = data
        return images.to(device), nn.functional.one_hot(labels, classes).to(images.dtype).to(device)

    train = as_told(split.train)
    risk = EmpiricalRisk(model, nn.functional.mse_loss, train, memory_budget=ample_budget(device))
    return Problem(model, risk, risk.with_data(as_told(split.test)), split)


class SmallImages(Protocol):
    """The constants that :func:`small_images` reads."""

    @property
    def seed(self) -> int:
        """Of everything."""

    @property
    def clean(self) -> int:
        """Training images with their own label."""

    @property
    def corrupted(self) -> int:
        """Training images with a random label."""

    @property
    def test(self) -> int:
        """Test images of FashionMNIST."""

    @property
    def data_dir(self) -> str | None:
        """Where FashionMNIST is; None: digits."""

    @property
    def device(self) -> str:
        """Where."""


def small_images(config: SmallImages, repetition: int, *, activation: type[nn.Module] = nn.ReLU) -> Problem:
    """One repetition's images, of digits or 7 × 7 of FashionMNIST, and its freshly initialised network."""
    seed = derived_seed(config.seed, repetition, 0)
    if config.data_dir is None:
        split = corrupted_digits(seed=seed, clean=config.clean, corrupted=config.corrupted)
    else:
        split = image_split(
            "fashion_mnist",
            seed=seed,
            clean=config.clean,
            corrupted=config.corrupted,
            test=config.test,
            data_dir=config.data_dir,
            size=7,
        )
    model = digits_net(derived_seed(config.seed, repetition, 1), activation=activation)
    return classification(model, split, config.device)


def data_tensors(splits: Sequence[ImageSplit]) -> dict[str, Tensor]:
    """Which images every repetition took, with which labels: enough to rebuild its data."""
    return {
        f"seed-{repetition}/{name}": torch.as_tensor(getattr(split, name))
        for repetition, split in enumerate(splits)
        for name in ("rows", "labels", "corrupted", "test_rows")
    }


def data_identity(splits: Sequence[ImageSplit]) -> dict[str, str]:
    """Checksums by which a run knows its data again, wherever that lies.

    Of the sources, and of every repetition's images and labels as they are trained and tested on.
    """
    found = {
        f"{split} {name}": str(value)
        for split in ("train", "test")
        for name, value in splits[0].facts[split].items()
        if name != "source"
    }
    for repetition, made in enumerate(splits):
        digest = hashlib.sha256()
        for part in ("images", "labels", "corrupted", "test_images", "test_labels"):
            tensor = getattr(made, part).cpu().contiguous()
            digest.update(f"{part} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        found[f"images and labels of seed {repetition}"] = digest.hexdigest()[:16]
    return found
