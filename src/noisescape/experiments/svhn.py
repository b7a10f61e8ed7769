"""VGG-11 on SVHN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.experiment import Method
from noisescape.experiments.vgg import vgg_experiment


@dataclass(frozen=True)
class SVHNConfig(TrainingConfig):
    """Constants of the SVHN experiment."""

    experiment: ClassVar[str] = "svhn"
    data_set: ClassVar[str] = "svhn"


SVHN = vgg_experiment(
    SVHNConfig,
    data="SVHN",
    quick_test=283,
    published={"exchanged": True, "test": 70_000},
    methods=(Method("which images", "not known", "the first of their split", "drawn by the seed"),),
)
