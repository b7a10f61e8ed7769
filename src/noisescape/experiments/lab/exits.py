"""How do times of passage over a rise of the loss grow with it: exponentially, or as a power?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import NetworkConfig, law


@dataclass(frozen=True)
class ExitsConfig(NetworkConfig):
    """Constants of the run.

    Attributes:
        heights: barriers of the double wells, in units in which additive noise has ησ²/2 = 1.
        replicas: in each well.
        well_steps: at most, in a well.
        well_lr: η there.
        share: c of noise of variance c·L there.
        batch_size: B of SGD on the network, and of the noise that is kept fixed beside it.
        below: the learning rate there, over the threshold of mean-square stability.
        levels: rises of the training loss, over what noise of the minimum's covariance keeps in the long run.
        runs: of either noise on the network.
        steps: at most, of each.
    """

    seeds: int = 4
    heights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    replicas: int = 1000
    well_steps: int = 10_000
    well_lr: float = 0.01
    share: float = 80.0
    batch_size: int = 20
    below: float = 0.5
    levels: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 6.0)
    runs: int = 12
    steps: int = 400

    experiment: ClassVar[str] = "exits"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, replicas=2, well_steps=1, batch_size=1, runs=2, steps=1)
        require_positive(self, "well_lr", "share", "below")
        for name in ("heights", "levels"):
            found = getattr(self, name)
            if len(found) < 3 or not all(value > 0 for value in found):
                raise InvalidValueError(f"{name} are positive, at least three, not {found}")


EXITS = law(
    ExitsConfig,
    title="Exit times: exponential in the barrier, or a power of it?",
    question="Is the time to leave a basin exponential in the barrier, or a power of it?",
    help="First passages over barriers: Kramers' exponential against a power law, in wells and on a network.",
    figure="Mean time of passage against the rise of the loss.",
    options=(Option("steps", "Steps of each run on the network."),),
)
