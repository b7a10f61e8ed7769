"""How sharp is the ground that plain gradient descent settles on? λ₁ against the learning rate, beside 2/η.

The outside figures are those of a poster; see :data:`POSTER`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least, require_positive, require_small_images
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem

CLASSES = 10
"""Of either."""

POSTER: dict[float, tuple[float, float | None]] = {
    0.01: (53.5, 4.3),
    0.05: (39.3, 0.5),
    0.1: (19.6, 0.15),
    0.5: (3.9, None),
}
"""η ↦ (sharpness λ₁, its ±) where gradient descent ended.

As printed on the poster of Wu, Ma and E, "How SGD selects the global minima in over-parameterized learning"
(NeurIPS 2018). The preset ``poster`` has the constants of their repository, leiwu0/sgd.stability. λ₁ there is from
ten steps of a power iteration at most, which comes out too low rather than too high."""


@dataclass(frozen=True)
class GDSharpnessConfig:
    """Constants of the run; the defaults are the poster's.

    Attributes:
        preset: its name.
        seeds: independent repetitions: the initialisation and random labels, of digits also the choice of images.
        rates: the learning rates η, a run each.
        edge_from: the rates from this on are expected to reach the edge, λ₁ = 2/η, within the steps. At smaller
            ones sharpening takes longer than the run: no claim is judged by those.
        steps: full-batch steps of every run.
        measure_every: steps between two measurements.
        data: "digits", which needs no download, or "fashion_mnist": its first images in the order of the file.
        clean: training images with their own label.
        corrupted: training images with a random label, without which digits are fitted before λ₁ has risen far.
        widths: of the hidden layers.
        data_dir: where FashionMNIST is; None: the environment variable NOISESCAPE_DATA, or the hub.
        seed: of everything.
        device: where.
    """

    preset: str = "poster"
    seeds: int = 5
    rates: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5)
    edge_from: float = 0.05
    steps: int = 10_000
    measure_every: int = 200
    data: Literal["digits", "fashion_mnist"] = "fashion_mnist"
    clean: int = 1000
    corrupted: int = 0
    widths: tuple[int, ...] = (500, 500, 500)
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str] = "gd-sharpness"

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, steps=1, measure_every=1, seed=0)
        require_positive(self, "edge_from")
        require_small_images(self.data, self.data_dir)
        if not self.rates or not all(rate > 0 for rate in self.rates) or len({*self.rates}) < len(self.rates):
            raise InvalidValueError(
                f"rates are learning rates, positive and unlike, at least one, not {self.rates}"
            )
        if not self.widths or not all(width >= 1 for width in self.widths):
            raise InvalidValueError(f"widths are those of the hidden layers, at least one, not {self.widths}")


def gd_sharpness_problem(config: GDSharpnessConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    from noisescape.experiments.data import corrupted_digits, image_split
    from noisescape.experiments.models import fully_connected
    from noisescape.experiments.problem import one_hot_regression
    from noisescape.experiments.statistics import derived_seed

    seed, initial = (derived_seed(config.seed, repetition, part) for part in (0, 1))
    if config.data == "digits":
        split = corrupted_digits(seed=seed, clean=config.clean, corrupted=config.corrupted)
    else:
        split = image_split(
            "fashion_mnist",
            seed=seed,
            clean=config.clean,
            corrupted=config.corrupted,
            data_dir=config.data_dir,
            pixel_range=(0.0, 1.0),
            in_order=True,
        )
    model = fully_connected(initial, (split.images[0].numel(), *config.widths, CLASSES))
    return one_hot_regression(model, split, CLASSES, config.device)


_POSTER = GDSharpnessConfig()

GD_SHARPNESS = Experiment(
    config=GDSharpnessConfig,
    title="Where gradient descent settles: sharpness against the learning rate",
    question="How sharp is the minimum where gradient descent settles?",
    help="Sharpness where gradient descent settles, against 2/η and others' figures; quick without a download.",
    presets={
        "quick": replace(
            _POSTER,
            preset="quick",
            rates=(0.1, 0.4, 0.6, 1.0),
            edge_from=0.4,
            steps=4000,
            measure_every=100,
            data="digits",
            clean=160,
            corrupted=40,
            widths=(50, 50, 50),
        ),
        "poster": _POSTER,
    },
    options=(
        SEEDS,
        Option("steps", "Full-batch steps at every learning rate."),
        Option("measure_every", "Steps between two measurements of the sharpness."),
        Option("clean", "Training images with their own label."),
        Option("corrupted", "Training images with a random label."),
        DATA_DIR,
    ),
    problem=gd_sharpness_problem,
    runner="noisescape.experiments.protocols.gd_sharpness:run_gd_sharpness",
    table="noisescape.report.tables:gd_sharpness_table",
    report="noisescape.report.gd_sharpness:gd_sharpness_report",
    figures=(("settled", "The sharpness at which gradient descent settled, beside 2/η."),),
    of_paper=False,
)
