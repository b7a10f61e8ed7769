"""Does noise that depends on the parameters recover sparsity, where spherical noise does not?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import Option
from noisescape.experiments.lab.law import LawConfig, law


@dataclass(frozen=True)
class ImplicitBiasConfig(LawConfig):
    """Constants of the run: sparse regression by squares, that of arXiv 2006.08680.

    Attributes:
        dimension: d.
        sparsity: r.
        samples: N < d.
        delta: of the labels' noise.
        lr: η, which falls to 0 over the last two fifths of the steps.
        steps: of every arm.
        rhos: standard deviations of spherical noise, of which the best counts.
        runs: of every noisy arm.
    """

    seeds: int = 6
    dimension: int = 100
    sparsity: int = 5
    samples: int = 40
    delta: float = 1.0
    lr: float = 0.012
    steps: int = 60_000
    rhos: tuple[float, ...] = (0.3, 1.0)
    runs: int = 4

    experiment: ClassVar[str] = "implicit-bias"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, dimension=1, sparsity=1, samples=1, steps=1, runs=1)
        require_positive(self, "delta", "lr")

    def rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        return self.lr * min(1.0, 2.5 * (1 - step / self.steps))


IMPLICIT_BIAS = law(
    ImplicitBiasConfig,
    title="Implicit bias: label noise, spherical noise, and a penalty without noise",
    question="Which noise finds the sparse solution, and does it take noise at all?",
    help="Who recovers a sparse truth: gradient descent, SGD, label noise, spherical noise, a penalty.",
    figure="Relative error of what each arm comes to.",
    options=(Option("steps", "Steps of every arm."), Option("dimension", "d."), Option("samples", "N.")),
)
