"""FashionMNIST: eigenvalues of H, projection coefficient and Tr(HΣ) on the way to a sharp minimum, then escape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from noisescape.experiments.constants import COMPARED, EscapeConfig
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Method, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem


@dataclass(frozen=True)
class FashionMNISTConfig(EscapeConfig):
    """Constants of the run; the defaults are the published ones.

    Attributes:
        init_std: of the truncated normal.
        test: test images; None: all.
        data_dir: where the images are; None: the environment variable NOISESCAPE_DATA, or the hub.
    """

    dynamics: tuple[str, ...] = (*COMPARED, "gld-shuffled", "gd-gradient-penalty")
    init_std: float = 0.02
    test: int | None = None
    data_dir: str | None = None

    experiment: ClassVar[str] = "fashion-mnist"


def fashion_mnist_problem(config: FashionMNISTConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    from noisescape.experiments.data import image_split
    from noisescape.experiments.models import lenet
    from noisescape.experiments.problem import classification
    from noisescape.experiments.statistics import derived_seed

    split = image_split(
        "fashion_mnist",
        seed=derived_seed(config.seed, repetition, 0),
        clean=config.clean,
        corrupted=config.corrupted,
        test=config.test,
        data_dir=config.data_dir,
    )
    model = lenet(derived_seed(config.seed, repetition, 1), init_std=config.init_std)
    return classification(model, split, config.device)


_PAPER = FashionMNISTConfig()

FASHION_MNIST = Experiment(
    config=FashionMNISTConfig,
    title="Escape from a sharp minimum: a LeNet on FashionMNIST",
    question="Which noise leaves a sharp minimum for flatter ground?",
    help="To a sharp minimum of a LeNet and out of it again, under every noise.",
    presets={
        "quick": replace(
            _PAPER,
            preset="quick",
            seeds=3,
            clean=300,
            corrupted=60,
            gd_steps=1500,
            landmarks=(0.3, 0.5, 0.7),
            steps=500,
            curvature_refresh=50,
            sharpness_draws=100,
            rtol=0.05,
            test=2000,
        ),
        "paper": _PAPER,
        "as-published": replace(
            _PAPER,
            preset="as-published",
            clean=5800,
            corrupted=200,
            gd_arm_lr=0.1,
            rho=1e-3,
            rescale=False,
            every_step=("gld-dynamic", "gld-diagonal", "gld-top-eigenvector"),
        ),
    },
    options=(
        SEEDS,
        Option("gd_steps", "Gradient-descent steps to the minimum."),
        Option("steps", "Steps of each dynamics from there."),
        DATA_DIR,
    ),
    problem=fashion_mnist_problem,
    runner="noisescape.experiments.protocols.escape:run_escape",
    table="noisescape.report.tables:escape_table",
    report="noisescape.report.escape:escape_report",
    figures=(
        ("sharpness", "Expected sharpness under every noise from the same minimum."),
        ("indicator", "Tr(HΣ) and its isotropic reference, decay exponent and projection coefficient."),
    ),
    methods=(
        Method("leading noise is injected", "on every step", "on refresh steps only"),
        Method(
            "eigenvalues of Hessian noise",
            "the largest, none below 0",
            "the largest in magnitude, scaled by their signed sum",
        ),
        Method("batches of SGD", "with replacement", "without replacement, independent of each other"),
        Method(
            "covariance of the noises",
            "of a minibatch gradient",
            "estimated from the N/B batches of a random partition",
            "C/B, exact; for leading noise from a sketch where the gradients are many",
        ),
        Method(
            "first eigenvector of H",
            "of the largest eigenvalue",
            "of the eigenvalue largest in magnitude, by 30 power iterations from a random start",
            "of the largest eigenvalue, to a per cent of its curvature, followed from refresh to refresh",
        ),
        Method("which training images", "not known", "the first of the training split", "drawn by the seed"),
        Method(
            "sharpness is measured",
            "along the trajectory",
            "every 1,000 steps from 0 to 15,000, absolute",
            "after quarters of the steps, signed and absolute",
        ),
        Method(
            "compared beside the published dynamics",
            "nothing",
            "nothing",
            "full-covariance Gaussian noise, shuffled directions, a gradient penalty",
        ),
    ),
    in_code={"seeds": 1},
)
