"""SVHN and CIFAR-10: VGG-11 trained under each noise, test accuracy and sharpness at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from noisescape.experiments.data import image_split
from noisescape.experiments.models import vgg11
from noisescape.experiments.presets import preset_named
from noisescape.experiments.problem import Problem, classification
from noisescape.experiments.statistics import derived_seed
from noisescape.experiments.training import TrainingConfig, run_training
from noisescape.runs.run import Run


@dataclass(frozen=True)
class VGGConfig(TrainingConfig):
    """Constants of the run; the defaults are the published ones, but for the number of steps, which is not known.

    Attributes:
        pixel_low: what black becomes.
    """

    preset: str = "paper"
    seeds: int = 10
    train: int = 25_000
    test: int | None = None
    image_size: int = 32
    width: float = 1.0
    lr: float = 0.05
    steps: int = 10_000
    batch_size: int = 100
    rho: float | None = None
    refresh: int = 10
    batches: int | None = 100
    sharpness_delta: float = 1e-3
    sharpness_draws: int = 100
    pixel_low: float = 0.0

    data_set: ClassVar[str]


@dataclass(frozen=True)
class SVHNConfig(VGGConfig):
    """Constants of the SVHN experiment."""

    experiment: ClassVar[str] = "svhn"
    data_set: ClassVar[str] = "svhn"


@dataclass(frozen=True)
class CIFAR10Config(VGGConfig):
    """Constants of the CIFAR-10 experiment."""

    train: int = 50_000

    experiment: ClassVar[str] = "cifar10"
    data_set: ClassVar[str] = "cifar10"


# At the published rate, with black at 0, a network this deep takes thousands of steps to leave the plateau at
# the start; pixels around 0 and twice the rate bring it off within a quick run. With so few images the exact
# covariance costs a third of that of a hundred batches.
_SMALL: dict[str, Any] = {
    "preset": "quick",
    "seeds": 3,
    "image_size": 16,
    "width": 1 / 16,
    "lr": 0.1,
    "steps": 500,
    "pixel_low": -1.0,
    "batches": None,
}
SVHN_PRESETS: dict[str, SVHNConfig] = {
    "quick": replace(SVHNConfig(), train=800, test=283, **_SMALL),
    "paper": SVHNConfig(),
    "as-published": replace(SVHNConfig(), preset="as-published", rho=1e-3),
}
CIFAR10_PRESETS: dict[str, CIFAR10Config] = {
    "quick": replace(CIFAR10Config(), train=800, test=1000, **_SMALL),
    "paper": CIFAR10Config(),
    "as-published": replace(CIFAR10Config(), preset="as-published", rho=1e-3),
}


def svhn_config(preset: str, **changes: Any) -> SVHNConfig:
    """The preset with some constants changed; those that are None stay."""
    return preset_named(SVHN_PRESETS, preset, changes)


def cifar10_config(preset: str, **changes: Any) -> CIFAR10Config:
    """The preset with some constants changed; those that are None stay."""
    return preset_named(CIFAR10_PRESETS, preset, changes)


def vgg_problem(config: VGGConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    split = image_split(
        config.data_set,
        seed=derived_seed(config.seed, repetition, 0),
        clean=config.train,
        test=config.test,
        data_dir=config.data_dir,
        size=config.image_size,
        pixel_range=(config.pixel_low, 1.0),
    )
    seed = derived_seed(config.seed, repetition, 1)
    model = vgg11(seed, width=config.width, image_size=config.image_size)
    return classification(model, split, config.device)


def run_vgg(
    config: VGGConfig, out: Path, *, jobs: int | None = None, resume: bool = False, progress: bool = True
) -> Run:
    """Train under every noise; see :func:`~noisescape.experiments.training.run_training`."""
    return run_training(config, vgg_problem, out, jobs=jobs, resume=resume, progress=progress)
