"""What the experiments of the theory lab have in common: their constants, and where their parts are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from noisescape.experiments.constants import require_at_least, require_positive
from noisescape.experiments.experiment import SEEDS, Experiment, Option

IMAGES = Option(
    "data_dir",
    "Directory with fashion_mnist/SPLIT.parquet: 7 × 7 images of those in place of digits.",
    Path,
)


@dataclass(frozen=True)
class LawConfig:
    """Constants that every law's experiment has.

    Attributes:
        preset: its name.
        seeds: independent repetitions.
        seed: of everything.
        device: where.
    """

    preset: str = "quick"
    seeds: int = 5
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str]

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, seed=0)


@dataclass(frozen=True)
class NetworkConfig(LawConfig):
    """Constants of those that are tried on a small network of images.

    Attributes:
        clean: training images with their own label.
        corrupted: training images with a random label.
        test: test images where the data set is FashionMNIST; of digits it is all others.
        gd_lr: learning rate of gradient descent to the minimum, constant until three quarters, then falling to 0.
        gd_steps: its steps.
        data_dir: where FashionMNIST is; None: digits, which need no download.
    """

    clean: int = 500
    corrupted: int = 100
    test: int = 2000
    gd_lr: float = 0.1
    gd_steps: int = 2000
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, clean=1, corrupted=0, test=1, gd_steps=1)
        require_positive(self, "gd_lr")

    def gd_rate(self, step: int) -> float:
        """The learning rate of gradient descent at a step, counted from 0."""
        return self.gd_lr * min(1.0, 4 * (1 - step / self.gd_steps))


def law(
    config: type[LawConfig], *, title: str, question: str, help: str, figure: str, options: tuple[Option, ...] = ()
) -> Experiment:
    """A law's experiment; its protocol and report are in the files of its name.

    Args:
        config: the class of its constants, whose defaults are the quick preset.
        title: of the report.
        question: what the report answers.
        help: of the command, a line.
        figure: caption of the figure that stands for it, which is called as the law is.
        options: constants that its command has an option for, beside the seeds, and the data of a network's.
    """
    name = config.experiment
    place = name.replace("-", "_")
    data: tuple[Option, ...] = (IMAGES,) if issubclass(config, NetworkConfig) else ()
    presets: dict[str, Any] = {"quick": config()}
    return Experiment(
        config=config,
        title=title,
        question=question,
        help=help,
        presets=presets,
        options=(SEEDS, *options, *data),
        runner=f"noisescape.experiments.protocols.lab.{place}:run",
        table="noisescape.report.lab.tables:law_table",
        report=f"noisescape.report.lab.{place}:report",
        figures=((name, figure),),
        of_paper=False,
    )
