"""VGG-11 on SVHN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.experiments.vgg import VGGConfig, vgg_experiment


@dataclass(frozen=True)
class SVHNConfig(VGGConfig):
    """Constants of the SVHN experiment."""

    experiment: ClassVar[str] = "svhn"
    data_set: ClassVar[str] = "svhn"


SVHN = vgg_experiment(SVHNConfig, data="SVHN", quick_test=283)
