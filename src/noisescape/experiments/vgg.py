"""VGG-11 trained under each noise, test accuracy and sharpness at the end: what SVHN and CIFAR-10 share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Method, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem


def vgg_problem(config: TrainingConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    from noisescape.experiments.data import image_split
    from noisescape.experiments.models import vgg11
    from noisescape.experiments.problem import classification
    from noisescape.experiments.statistics import derived_seed

    split = image_split(
        config.data_set,
        seed=derived_seed(config.seed, repetition, 0),
        clean=config.train,
        test=config.test,
        data_dir=config.data_dir,
        size=config.image_size,
        pixel_range=(config.pixel_low, 1.0),
        exchanged=config.exchanged,
    )
    seed = derived_seed(config.seed, repetition, 1)
    model = vgg11(seed, width=config.width, image_size=config.image_size, init=config.init)
    return classification(model, split, config.device)


def vgg_experiment(
    config: type[TrainingConfig],
    *,
    data: str,
    quick_test: int,
    published: dict[str, Any],
    methods: tuple[Method, ...],
) -> Experiment:
    """The experiment on one data set.

    Args:
        config: its constants' class, whose defaults are the published ones.
        data: the data set's name, for readers.
        quick_test: test images of the quick preset.
        published: constants of the published code for this data set alone.
        methods: where it differs other than by a constant, for this data set alone.
    """
    paper = config()
    return Experiment(
        config=config,
        title=f"Training under noise: VGG-11 on {data}",
        question="Does the shape of the noise decide how well a network generalises?",
        help=f"VGG-11 on {data} under every noise: test accuracy, and sharpness against it.",
        presets={
            # At the published rate, with black at 0, a network this deep takes thousands of steps to leave the
            # plateau at the start; pixels around 0 and twice the rate bring it off within a quick run. With so few
            # images the exact covariance costs a third of that of a hundred batches.
            "quick": replace(
                paper,
                preset="quick",
                seeds=3,
                train=800,
                test=quick_test,
                image_size=16,
                width=1 / 16,
                lr=0.1,
                steps=500,
                pixel_low=-1.0,
                batches=None,
            ),
            # The arms that the claims compare, at the sizes that gradient descent can pay for: decision 22.
            "two-cores": replace(
                paper,
                preset="two-cores",
                seeds=6,
                train=5000,
                image_size=16,
                width=1 / 16,
                lr=0.1,
                steps=1750,
                pixel_low=-1.0,
                batches=None,
                refresh=5,
                dynamics=("gd", "sgd", "gld-dynamic", "gld-diagonal"),
                level=1.0,
            ),
            # Gradient descent and SGD at the full width, whose size a GPU alone can pay for: decision 26.
            "gpu": replace(
                paper,
                preset="gpu",
                seeds=3,
                train=5000,
                lr=0.1,
                steps=1750,
                pixel_low=-1.0,
                dynamics=("gd", "sgd"),
                sharpness_draws=30,
                level=1.0,
                training="tf32",
            ),
            "paper": paper,
            "as-published": replace(
                paper,
                preset="as-published",
                rho=1e-3,
                steps=200_001,
                init="fan-out",
                replacement=False,
                sharpness_at=tuple(range(3000, 15_001, 1000)),
                **published,
            ),
        },
        options=(
            SEEDS,
            Option("steps", "Training steps, at most where all train to one loss."),
            Option("train", "Training images."),
            Option("test", "Test images."),
            Option("width", "Share of the published width.", float),
            Option("image_size", "Pixels a side, 32 or 16."),
            DATA_DIR,
        ),
        problem=vgg_problem,
        runner="noisescape.experiments.protocols.training:run_training",
        table="noisescape.report.tables:training_table",
        report="noisescape.report.training:training_report",
        figures=(("sharpness_accuracy", "Sharpness and test accuracy of every dynamics."),),
        methods=(
            *methods,
            Method("steps of SGD", "not known", "100,001, half of the others'", "as many as of the others"),
            Method("sharpness", "not known", "absolute", "signed and absolute, also at the last step"),
            Method(
                "compared beside the published dynamics", "nothing", "nothing", "full-covariance Gaussian noise"
            ),
        ),
        in_code={"seeds": 1},
    )
