"""The quantities: what the theory of escaping adds up and compares, measured along SGD from a minimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from noisescape.errors import InvalidValueError, unknown
from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem


ACTIVATIONS = ("relu", "gelu", "tanh")
"""By name."""


@dataclass(frozen=True)
class QuantitiesConfig:
    """Constants of the run.

    Attributes:
        preset: its name.
        activation: of the network: "relu", whose kinks no second derivative sees, or the smooth "gelu" or "tanh".
        seeds: independent repetitions: choice of images, random labels, initialisation and batches.
        gd_lr: learning rate of gradient descent to the minimum, constant until the decay.
        gd_steps: its steps.
        gd_decay_from: share of its steps after which the rate falls linearly, to reach 0 at the end: gradient
            descent at a fixed rate would leave off where it oscillates, not at a stationary point.
        lr: η of SGD from there.
        steps: of SGD.
        batch_sizes: B of the runs, with replacement, each from the same minimum.
        rates: multiples of ``lr`` at which a single step from the minimum is measured against its budget.
        draws: batches drawn to measure what a step changes.
        clean: training images with their own label.
        corrupted: training images with a random label.
        test: test images where the data set is FashionMNIST; of digits it is all others.
        measure_every: steps between two measurements of Tr(HΣ), of sharpness and of test accuracy.
        landmarks: shares of ``steps`` at which what costs more is measured.
        k: of condition (1); so many directions are also taken out of the probes.
        compared: leading eigenvectors of C, F and H whose spans are compared.
        rtol: relative standard error asked of what is estimated.
        max_products: bound on the cost of each estimate.
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        data_dir: where FashionMNIST is; None: digits, which need no download.
        seed: of everything.
        device: where.
    """

    preset: str = "quick"
    activation: str = "relu"
    seeds: int = 3
    gd_lr: float = 0.1
    gd_steps: int = 2000
    gd_decay_from: float = 0.75
    lr: float = 0.01
    steps: int = 200
    batch_sizes: tuple[int, ...] = (5, 20, 100)
    rates: tuple[float, ...] = (0.25, 1.0, 4.0)
    draws: int = 100
    clean: int = 500
    corrupted: int = 100
    test: int = 2000
    measure_every: int = 10
    landmarks: tuple[float, ...] = (0.0, 0.25, 1.0)
    k: int = 20
    compared: int = 10
    rtol: float = 0.05
    max_products: int = 200
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 20
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str] = "quantities"

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, gd_steps=1, steps=1, test=1, measure_every=1, k=1, compared=1, seed=0)
        require_at_least(self, draws=2, sharpness_draws=2, max_products=2)
        require_positive(self, "gd_lr", "lr", "rtol", "sharpness_delta")
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if not 0 <= self.gd_decay_from < 1:
            raise InvalidValueError(f"gd_decay_from is a share of gd_steps in [0, 1), not {self.gd_decay_from}")
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise InvalidValueError(f"batch_sizes are numbers of samples, at least one, not {self.batch_sizes}")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise InvalidValueError(f"batch_sizes must differ from each other; they are {self.batch_sizes}")
        if not self.rates or not all(rate > 0 for rate in self.rates):
            raise InvalidValueError(f"rates are positive multiples of lr, at least one, not {self.rates}")
        if not self.landmarks or not all(0 <= share <= 1 for share in self.landmarks):
            raise InvalidValueError(f"landmarks are shares of steps in [0, 1], at least one, not {self.landmarks}")

    def gd_rate(self, step: int) -> float:
        """The learning rate of gradient descent at a step, counted from 0."""
        decaying = self.gd_steps * (1 - self.gd_decay_from)
        return self.gd_lr * min(1.0, (self.gd_steps - step) / decaying)

    @property
    def measured(self) -> list[int]:
        """The steps of SGD at which Tr(HΣ), sharpness and test accuracy are measured."""
        return sorted({*range(0, self.steps, self.measure_every), self.steps})

    @property
    def landmark_steps(self) -> list[int]:
        """The landmarks as steps, the last step one of them."""
        return sorted({*(round(self.steps * share) for share in self.landmarks), self.steps})


def quantities_problem(config: QuantitiesConfig, repetition: int) -> Problem:
    """One repetition's images, of digits or 7 × 7 of FashionMNIST, and its freshly initialised network."""
    from torch import nn

    from noisescape.experiments.problem import small_images

    activation = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[config.activation]
    return small_images(config, repetition, activation=activation)


QUANTITIES = Experiment(
    config=QuantitiesConfig,
    title="What the loss is made of along SGD from a minimum",
    question="What does the noise of SGD do to the loss, and how alike are C, F and H?",
    help="The loss budget, A against a shuffled control, and C, F and H, along SGD from a minimum; no download.",
    presets={"quick": QuantitiesConfig()},
    options=(
        SEEDS,
        Option("activation", "Of the network: relu, gelu or tanh; only the latter two are smooth.", str),
        Option("gd_steps", "Gradient-descent steps to the minimum."),
        Option("steps", "Steps of SGD from there, at each batch size."),
        Option("clean", "Training images with their own label."),
        Option("corrupted", "Training images with a random label."),
        Option(DATA_DIR.constant, "Directory with fashion_mnist/SPLIT.parquet, for FashionMNIST.", DATA_DIR.kind),
    ),
    problem=quantities_problem,
    runner="noisescape.experiments.protocols.quantities:run_quantities",
    table="noisescape.report.tables:quantities_table",
    report="noisescape.report.quantities:quantities_report",
    figures=(("budget", "What the loss was expected to change by along SGD, and what it did."),),
    of_paper=False,
)
