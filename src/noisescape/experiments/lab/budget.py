"""Does batch sharpness settle at 2/η, and with momentum at 2(1−β)/η, while SGD trains?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import LawConfig, law


@dataclass(frozen=True)
class BudgetConfig(LawConfig):
    """Constants of the run: digits, a fully connected network.

    Attributes:
        clean: training images with their own label.
        corrupted: training images with a random label, without which digits are fitted too soon.
        widths: of the hidden layers.
        batch_sizes: B of the runs.
        momenta: β of the runs; the learning rate is (1−β)·lr, so that all move as far.
        lr: η without momentum, of squared loss averaged over ten outputs.
        entropy_lr: η of the runs on cross-entropy, without momentum.
        steps: of each run.
        measure_every: steps between two measurements.
        draws: batches of a measurement.
    """

    seeds: int = 4
    clean: int = 120
    corrupted: int = 80
    widths: tuple[int, ...] = (50, 50)
    batch_sizes: tuple[int, ...] = (8, 32)
    momenta: tuple[float, ...] = (0.0, 0.9)
    lr: float = 1.0
    entropy_lr: float = 0.1
    steps: int = 6000
    measure_every: int = 250
    draws: int = 50

    experiment: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, clean=1, corrupted=0, steps=1, measure_every=1, draws=2)
        require_positive(self, "lr", "entropy_lr")
        if not all(0 <= momentum < 1 for momentum in self.momenta):
            raise InvalidValueError(f"momenta lie in [0, 1), not {self.momenta}")


BUDGET = law(
    BudgetConfig,
    title="The edge of stochastic stability: batch sharpness against 2/η",
    question="Does SGD train at the edge of its own stability, the sharpness of its batches at 2/η?",
    help="Batch sharpness along SGD from the initialisation, with and without momentum, against 2/η.",
    figure="Batch sharpness over its level, along training.",
    options=(Option("steps", "Steps of each run."),),
)
