"""The escape protocol on scikit-learn's digits: the FashionMNIST experiment at a size that runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from noisescape.experiments.constants import EscapeConfig
from noisescape.experiments.experiment import Experiment, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem


@dataclass(frozen=True)
class DigitsConfig(EscapeConfig):
    """Constants of the run; see :class:`~noisescape.experiments.constants.EscapeConfig`."""

    preset: str = "quick"
    seeds: int = 3
    gd_steps: int = 2000
    landmarks: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    steps: int = 240
    sharpness_draws: int = 100

    experiment: ClassVar[str] = "digits"


def digits_problem(config: DigitsConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    from noisescape.experiments.data import corrupted_digits
    from noisescape.experiments.models import digits_net
    from noisescape.experiments.problem import classification
    from noisescape.experiments.statistics import derived_seed

    split = corrupted_digits(
        seed=derived_seed(config.seed, repetition, 0), clean=config.clean, corrupted=config.corrupted
    )
    model = digits_net(derived_seed(config.seed, repetition, 1))
    return classification(model, split, config.device)


DIGITS = Experiment(
    config=DigitsConfig,
    title="Escape from a sharp minimum: a small network on digits",
    question="Which noise leaves a sharp minimum for flatter ground?",
    help="Escape from a sharp minimum of a small network on real images that need no download.",
    presets={"quick": DigitsConfig()},
    options=(
        Option("seeds", "Independent repetitions."),
        Option("gd_steps", "Gradient-descent steps to the minimum."),
        Option("steps", "Steps of each dynamics from there."),
        Option("batch_size", "B of the minibatch noise."),
        Option("dynamics", "Names of the compared dynamics, separated by commas.", tuple),
    ),
    problem=digits_problem,
    runner="noisescape.experiments.protocols.escape:run_escape",
    table="noisescape.report.tables:escape_table",
    report="noisescape.report.escape:escape_report",
    figures=(("sharpness", "Expected sharpness under every noise from the same minimum."),),
    of_paper=False,
)
