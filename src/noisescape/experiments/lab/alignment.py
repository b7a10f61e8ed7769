"""Does the noise lie along the curvature as a power law says, coordinate by coordinate?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import NetworkConfig, law


@dataclass(frozen=True)
class AlignmentConfig(NetworkConfig):
    """Constants of the run.

    Attributes:
        per_layer: coordinates of each weight tensor that are looked at.
        batch_size: B of SGD, by which the third place is reached.
        lr: its η.
        steps: of it.
        rtol: relative standard error asked of μ's traces.
    """

    per_layer: int = 150
    batch_size: int = 20
    lr: float = 0.05
    steps: int = 1500
    rtol: float = 0.03

    experiment: ClassVar[str] = "alignment"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, per_layer=8, batch_size=1, steps=1)
        require_positive(self, "lr", "rtol")


ALIGNMENT = law(
    AlignmentConfig,
    title="Alignment: C_ii ∝ H_ii^γ, and μ",
    question="Is there more noise where the loss curves more, coordinate by coordinate?",
    help="The exponent γ of noise against curvature in every weight tensor, beside pairs at random; μ.",
    figure="γ of every weight tensor, beside that of pairs at random.",
    options=(Option("per_layer", "Coordinates of each tensor that are looked at."),),
)
