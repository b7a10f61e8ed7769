"""Does SGD diffuse out of the minimum that gradient descent settles in, or is it unstable there?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import NetworkConfig, law


@dataclass(frozen=True)
class StabilityConfig(NetworkConfig):
    """Constants of the run.

    Attributes:
        batch_sizes: B, each with its threshold η*.
        multiples: of η*, the learning rates of the runs.
        runs: of SGD at each, and as many with noise of the minimum's covariance kept fixed.
        steps: at most, of each.
        left: a training loss at which a run has left, far over that of the minimum and far below chance.
    """

    seeds: int = 6
    batch_sizes: tuple[int, ...] = (5, 20)
    multiples: tuple[float, ...] = (0.5, 1.0, 1.5)
    runs: int = 4
    steps: int = 150
    left: float = 0.7

    experiment: ClassVar[str] = "stability"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, runs=1, steps=1)
        require_positive(self, "left")
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise InvalidValueError(f"batch_sizes are numbers of samples, at least one, not {self.batch_sizes}")
        if not self.multiples or not all(multiple > 0 for multiple in self.multiples):
            raise InvalidValueError(f"multiples of η* are positive, at least one, not {self.multiples}")


STABILITY = law(
    StabilityConfig,
    title="Diffusing or unstable: SGD at the minimum of gradient descent",
    question="At what learning rate does SGD leave a minimum that gradient descent keeps?",
    help="The threshold of mean-square stability beside who leaves a minimum: SGD, and noise kept fixed.",
    figure="Runs that left the minimum, against the learning rate over its threshold.",
    options=(Option("steps", "Steps of each run from the minimum."),),
)
