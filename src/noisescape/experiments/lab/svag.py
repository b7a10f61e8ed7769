"""Is SGD as far along its course as its stochastic differential equation? SVAG at several ℓ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import NetworkConfig, law


@dataclass(frozen=True)
class SVAGConfig(NetworkConfig):
    """Constants of the run.

    Attributes:
        batch_size: B.
        below: the learning rates, over the threshold of mean-square stability of SGD.
        ells: ℓ, the largest of which stands for the equation.
        runs: at each ℓ and rate.
        steps: of SGD; at ℓ ℓ times as many.
    """

    seeds: int = 4
    batch_size: int = 20
    below: tuple[float, ...] = (0.2, 0.8)
    ells: tuple[int, ...] = (1, 2, 4, 8)
    runs: int = 8
    steps: int = 100

    experiment: ClassVar[str] = "svag"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, batch_size=1, runs=2, steps=2)
        if not self.below or not all(share > 0 for share in self.below):
            raise InvalidValueError(f"below are positive shares of η*, at least one, not {self.below}")
        if len({*self.ells}) < 2 or min(self.ells) != 1:
            raise InvalidValueError(f"ells begin at 1 and are at least two, not {self.ells}")


SVAG_LAW = law(
    SVAGConfig,
    title="SGD and its stochastic differential equation",
    question="Is SGD where its stochastic differential equation says?",
    help="SVAG at ℓ = 1, 2, 4, 8 from a settled minimum: is SGD where its SDE is?",
    figure="Training loss of SVAG at the same times.",
    options=(Option("steps", "Steps of SGD."), Option("batch_size", "B.")),
)
