"""Does SGD's noise lead to flatter minima that generalise better? Compared at the same training loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from noisescape.errors import InvalidValueError, unknown
from noisescape.experiments.constants import require_at_least, require_positive, require_small_images
from noisescape.experiments.experiment import DATA_DIR, SEEDS, Experiment, Option

if TYPE_CHECKING:
    from noisescape.experiments.problem import Problem

YOKED = (
    "gld-dynamic",
    "gld-diagonal",
    "gld-shuffled",
    "gld-shuffled-within-layers",
    "gld-leading",
    "gld-hessian",
    "gld-top-eigenvector",
)
"""The noises that are given, step by step, the trace that SGD's noise had in the same repetition."""
FOLLOWED = ("gld-top-eigenvector", "gld-leading", "gld-hessian")
"""Noises along few directions, which are computed anew every ``curvature_refresh`` steps."""
MEASURED_EVERY = {"gld-top-eigenvector": 1, "gld-leading": 3, "gld-hessian": 3}
"""Steps between two measurements of ‖ε‖² of noise along few directions. It says so little of their trace that the
measurements of the others would not do: decision 18."""
CONTROLS = ("gd-after-sgd", "sgd-from-initialisation", "sgd-small-rate")
"""What else may make SGD's end flat. Gradient descent from where `BRIEF` steps of SGD led: noise on the way down
plays no part. SGD from the initialisation: nor does the minimum. SGD at `SMALL_RATE`: is it led out, or thrown?"""
BRIEF = 50
"""SGD's steps in gd-after-sgd. At the preset's rate SGD is at a loss of 2 or more after 10, in 24 of 24 runs."""
SMALL_RATE = 0.01
"""η of sgd-small-rate: a seventh of the preset's."""
OWN_NOISE = ("sgd", "gld-full", *CONTROLS)
"""Those whose noise is what it is where they are, trace and all."""
ARMS = ("gd", *OWN_NOISE, *YOKED, "gd-gradient-penalty")
"""All that can be compared."""


@dataclass(frozen=True)
class MatchedLossConfig:
    """Constants of the protocol, :mod:`noisescape.experiments.protocols.matched_loss`.

    Attributes:
        preset: its name.
        seeds: independent repetitions: choice of images, random labels, initialisation and noise.
        noise_seeds: runs of SGD from the same minimum in each.
        data: "digits", which needs no download, or "fashion_mnist".
        clean: training images with their own label.
        corrupted: training images with a random label.
        gd_lr: η to the minimum.
        gd_steps: gradient-descent steps to the minimum, before it is settled.
        settle_lr: η of the descent that settles it.
        settle_steps: at most.
        settled_gradient: ‖ḡ‖ below which it is settled, if it is stable, too.
        settled_stability: λ₁ of a settled minimum is below this over ``lr``; gradient descent is stable below 2.
        lr: η of every arm.
        steps: of every arm, at most: SGD and full Gaussian noise end where they have come back to the loss of the
            minimum, the yoked noises where SGD did.
        batch_size: B, with replacement.
        k: rank of leading and Hessian noise.
        curvature_refresh: steps between two computations of the directions of leading and Hessian noise; all else
            is computed anew at every step.
        penalty: strength s of the control GD on L + s‖∇L‖².
        left: an arm has left when its loss is this much above the minimum's.
        levels: shares of the minimum's loss at which the arms are compared; the first decides.
        quench_steps: of gradient descent, at most, to bring an iterate to the level.
        curve_steps: to which the first run of SGD goes on, for its learning curve.
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        dynamics: the arms; gd and sgd are always among them.
        data_dir: where FashionMNIST is; None: the environment variable NOISESCAPE_DATA, or the hub.
        seed: of everything.
        device: where.
    """

    preset: str = "paper"
    seeds: int = 12
    noise_seeds: int = 4
    data: Literal["digits", "fashion_mnist"] = "fashion_mnist"
    clean: int = 1000
    corrupted: int = 200
    gd_lr: float = 0.1
    gd_steps: int = 3000
    settle_lr: float = 0.05
    settle_steps: int = 3000
    settled_gradient: float = 0.05
    settled_stability: float = 1.8
    lr: float = 0.07
    steps: int = 8000
    batch_size: int = 20
    k: int = 20
    curvature_refresh: int = 10
    penalty: float = 0.01
    left: float = 0.05
    levels: tuple[float, ...] = (1.0, 0.3)
    quench_steps: int = 8000
    curve_steps: int = 11_000
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 100
    dynamics: tuple[str, ...] = ("gd", "sgd")
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str] = "matched-loss"

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, noise_seeds=1, gd_steps=1, settle_steps=1, steps=1, batch_size=1, k=1)
        require_at_least(self, curvature_refresh=1, quench_steps=1, sharpness_draws=2, curve_steps=0, seed=0)
        require_positive(
            self, "gd_lr", "settle_lr", "settled_gradient", "settled_stability", "lr", "penalty", "left"
        )
        require_positive(self, "sharpness_delta")
        require_small_images(self.data, self.data_dir)
        for name in self.dynamics:
            if name not in ARMS:
                raise unknown("arm", name, ARMS)
        if missing := {"gd", "sgd"} - {*self.dynamics}:
            raise InvalidValueError(
                f"dynamics must have {' and '.join(sorted(missing))}, which all is compared with"
            )
        if not self.levels or list(self.levels) != sorted(self.levels, reverse=True) or not self.levels[-1] > 0:
            raise InvalidValueError(f"levels are positive shares of the minimum's loss, falling, not {self.levels}")

    def of_dynamics(self, name: str) -> dict[str, Any]:
        """The constants that an arm's dynamics is made with."""
        refresh = self.curvature_refresh if name in FOLLOWED else 1
        return {"batch_size": self.batch_size, "k": self.k, "refresh": refresh, "strength": self.penalty}


def matched_loss_problem(config: MatchedLossConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    from noisescape.experiments.data import corrupted_digits, image_split
    from noisescape.experiments.models import digits_net, lenet
    from noisescape.experiments.problem import classification
    from noisescape.experiments.statistics import derived_seed

    seed, initial = (derived_seed(config.seed, repetition, part) for part in (0, 1))
    clean, corrupted = config.clean, config.corrupted
    if config.data == "digits":
        split = corrupted_digits(seed=seed, clean=clean, corrupted=corrupted)
        return classification(digits_net(initial), split, config.device)
    split = image_split("fashion_mnist", seed=seed, clean=clean, corrupted=corrupted, data_dir=config.data_dir)
    return classification(lenet(initial), split, config.device)


_PAPER = MatchedLossConfig()

MATCHED_LOSS = Experiment(
    config=MatchedLossConfig,
    title="Does the noise of SGD lead to flatter minima? At the same training loss",
    question="Which noise ends at flatter ground, and does it generalise better?",
    help="Flatter, and better, at the same training loss? From settled minima; quick without a download.",
    presets={
        "quick": replace(
            _PAPER,
            preset="quick",
            seeds=3,
            noise_seeds=2,
            data="digits",
            clean=500,
            corrupted=100,
            curve_steps=0,
            dynamics=("gd", "sgd", "gld-full", "gld-dynamic"),
        ),
        "paper": _PAPER,
    },
    options=(
        SEEDS,
        Option("noise_seeds", "Runs of SGD from each minimum."),
        Option("steps", "Steps of every arm, at most."),
        Option("dynamics", "Arms, separated by commas; gd and sgd among them.", tuple),
        DATA_DIR,
    ),
    problem=matched_loss_problem,
    runner="noisescape.experiments.protocols.matched_loss:run_matched_loss",
    table="noisescape.report.tables:matched_loss_table",
    report="noisescape.report.matched_loss:matched_loss_report",
    figures=(
        ("sharpness", "Sharpness at the same training loss, relative to gradient descent's."),
        ("barriers", "Loss between the minimum and where each arm ended."),
    ),
    of_paper=False,
)
