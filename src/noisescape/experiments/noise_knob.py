"""The noise knob: does a large batch re-weighted as if it were small generalise as the small batch does?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from noisescape.errors import InvalidValueError, unknown
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem

ARMS = ("large-batch", "as-if-small", "small-batch", "isotropic", "gradient-penalty")
"""What is compared, by name."""


@dataclass(frozen=True)
class NoiseKnobConfig:
    """Constants of the run. Every arm takes the same number of steps at the same learning rates.

    Attributes:
        preset: its name.
        seeds: independent repetitions: choice of images, random labels, initialisation, batches and noise.
        lr: η of every arm, constant until the decay.
        decay_from: share of the steps after which η falls linearly, to reach 0 at the end. Without that what is
            compared at the last step is the noise of the last steps, rather than where it has led.
        steps: of every arm.
        batch_size: B of the large batches, with replacement.
        small_batch_size: b of the small ones, a divisor of B.
        penalty: strength of the gradient penalty in units of η/4, at which small batches carry it implicitly.
        clean: training images with their own label.
        corrupted: training images with a random label, which a network with little noise learns by heart.
        test: test images where the data set is FashionMNIST; of digits it is all others.
        measure_every: steps between two measurements of the injected noise and its target.
        sharpness_delta: δ of the expected sharpness at the end.
        sharpness_draws: its draws.
        dynamics: names of the arms.
        data_dir: where FashionMNIST is; None: digits, which need no download.
        seed: of everything.
        device: where.
    """

    preset: str = "quick"
    seeds: int = 12
    lr: float = 0.1
    decay_from: float = 0.75
    steps: int = 2000
    batch_size: int = 256
    small_batch_size: int = 8
    penalty: float = 1.0
    clean: int = 500
    corrupted: int = 100
    test: int = 2000
    measure_every: int = 25
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 100
    dynamics: tuple[str, ...] = ARMS
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str] = "noise-knob"

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, steps=1, small_batch_size=1, test=1, measure_every=1)
        require_at_least(self, sharpness_draws=2, seed=0)
        require_positive(self, "lr", "penalty", "sharpness_delta")
        if not 0 <= self.decay_from < 1:
            raise InvalidValueError(f"decay_from is a share of steps in [0, 1), not {self.decay_from}")
        if self.batch_size <= self.small_batch_size or self.batch_size % self.small_batch_size:
            raise InvalidValueError(
                f"batch_size must be a multiple of small_batch_size above it, not {self.batch_size} beside "
                f"{self.small_batch_size}"
            )
        for name in self.dynamics:
            if name not in ARMS:
                raise unknown("arm", name, ARMS)

    def rate(self, step: int) -> float:
        """η at a step, counted from 0."""
        decaying = self.steps * (1 - self.decay_from)
        return self.lr * min(1.0, (self.steps - step) / decaying)


def noise_knob_problem(config: NoiseKnobConfig, repetition: int) -> Problem:
    """One repetition's images, of digits or 7 × 7 of FashionMNIST, and its freshly initialised network."""
    from noisescape.experiments.problem import small_images

    return small_images(config, repetition)


NOISE_KNOB = Experiment(
    config=NoiseKnobConfig,
    title="The noise knob: a large batch as if it were small",
    question="Does a large batch given the noise of a small one generalise as the small one does?",
    help="A large batch with a small one's noise beside both, isotropic noise and a gradient penalty; no download.",
    presets={"quick": NoiseKnobConfig()},
    options=(
        SEEDS,
        Option("steps", "Steps of every arm."),
        Option("batch_size", "B of the large batches."),
        Option("small_batch_size", "b of the small ones, a divisor of B."),
        Option("clean", "Training images with their own label."),
        Option("corrupted", "Training images with a random label."),
        Option(DATA_DIR.constant, "Directory with fashion_mnist/SPLIT.parquet, for FashionMNIST.", DATA_DIR.kind),
    ),
    problem=noise_knob_problem,
    runner="noisescape.experiments.protocols.noise_knob:run_noise_knob",
    table="noisescape.report.tables:noise_knob_table",
    report="noisescape.report.noise_knob:noise_knob_report",
    figures=(("learning_curves", "Training loss and test accuracy of every arm."),),
    of_paper=False,
)
