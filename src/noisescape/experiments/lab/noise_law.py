"""How heavy are the tails of minibatch noise, over iterations and over coordinates; and what do epochs do to it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import NetworkConfig, law

FLAT_SHARE = 0.1
"""Directions in which epochs are predicted to leave a smaller share of the variance are flat to them."""


@dataclass(frozen=True)
class NoiseLawConfig(NetworkConfig):
    """Constants of the run.

    Attributes:
        batch_sizes: B of the tail tests.
        draws: iterations of a test.
        coordinates: that it looks at.
        nulls: Gaussian data sets beside each.
        epoch_batch: B of the runs with epochs and of those without.
        epochs: of each run; the variance is taken at the end of the last.
        epoch_lr: η there, small: what is compared with is a quadratic.
        runs: of either.
        directions: eigenvectors of H, evenly by rank, along which the variance is taken.
    """

    seeds: int = 4
    batch_sizes: tuple[int, ...] = (5, 50)
    draws: int = 1600
    coordinates: int = 400
    nulls: int = 99
    epoch_batch: int = 60
    epochs: int = 6
    epoch_lr: float = 0.015
    runs: int = 60
    directions: int = 12

    experiment: ClassVar[str] = "noise-law"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, draws=256, coordinates=128, nulls=19, epoch_batch=1, epochs=1, runs=2, directions=2)
        require_positive(self, "epoch_lr")
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise InvalidValueError(f"batch_sizes are numbers of samples, at least one, not {self.batch_sizes}")


NOISE_LAW = law(
    NoiseLawConfig,
    title="The law of minibatch noise: tails, and epochs",
    question="Is minibatch noise Gaussian, and what do epochs take from it?",
    help="Tails of the noise over iterations and coordinates beside Gaussian nulls; variance under epoch sampling.",
    figure="Tails beside their Gaussian nulls, and the variance that epochs leave.",
    options=(Option("draws", "Iterations of a tail test."), Option("runs", "Runs with epochs, and without.")),
)
