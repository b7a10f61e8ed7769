"""VGG-11 on CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.vgg import vgg_experiment


@dataclass(frozen=True)
class CIFAR10Config(TrainingConfig):
    """Constants of the CIFAR-10 experiment."""

    train: int = 50_000

    experiment: ClassVar[str] = "cifar10"
    data_set: ClassVar[str] = "cifar10"


CIFAR10 = vgg_experiment(CIFAR10Config, data="CIFAR-10", quick_test=1000, published={}, methods=())
