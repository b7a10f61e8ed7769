"""The local learning coefficient: right where it is known, and what it says of a network's minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import NetworkConfig, law


@dataclass(frozen=True)
class LLCConfig(NetworkConfig):
    """Constants of the run.

    Attributes:
        steps: of each chain on the models of known coefficient.
        chains: on each.
        network_steps: of each chain on the network.
        network_lr: ε there.
        localisation: γ there.
        batch_size: B of the chains' gradients there.
        sgd_batch, sgd_lr, sgd_steps: of SGD, whose end stands beside the minimum of gradient descent.
    """

    seeds: int = 4
    steps: int = 20_000
    chains: int = 8
    network_steps: int = 3000
    network_lr: float = 1e-4
    localisation: float = 100.0
    batch_size: int = 100
    sgd_batch: int = 20
    sgd_lr: float = 0.05
    sgd_steps: int = 4000

    experiment: ClassVar[str] = "llc"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, steps=1, chains=2, network_steps=1, batch_size=1, sgd_batch=1, sgd_steps=1)
        require_positive(self, "network_lr", "sgd_lr")


LLC = law(
    LLCConfig,
    title="The local learning coefficient, with its error",
    question="Can the local learning coefficient be measured, with an error that is honest?",
    help="The local learning coefficient by SGLD, with R̂ and effective sample size: known models, a network.",
    figure="Estimates beside what they should be.",
    options=(Option("network_steps", "Steps of each chain on the network."),),
)
