"""The constants that an experiment's run is fixed by, checked when they are made.

Read by ``--help``, so nothing here waits for torch: dynamics go by their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import override

from noisescape.errors import InvalidTypeError, InvalidValueError, unknown
from noisescape.scalars import LARGEST, check_positive, check_whole

COMPARED = (
    "gd",
    "sgd",
    "gld-constant",
    "gld-dynamic",
    "gld-diagonal",
    "gld-leading",
    "gld-hessian",
    "gld-top-eigenvector",
    "gld-full",
)
"""Those of the escape comparison. A new dynamics is none of them, or begun runs could not be resumed."""
CONTROLS = ("gld-shuffled", "gld-shuffled-within-layers", "gd-gradient-penalty")
"""Those that stand beside the comparison."""
DYNAMICS = (*COMPARED, *CONTROLS)
"""The names of all dynamics, those of :data:`noisescape.dynamics.DYNAMICS`."""
NOISELESS = ("gd", "gd-gradient-penalty")
"""Those without noise, that have no trace to match."""
TAKES_CURVATURE = ("gld-hessian", "gld-top-eigenvector")
"""Those that take eigenvectors of H, which cost more than what is taken from the noise."""

Init = Literal["fan-in", "fan-out"]
"""How a VGG-11 starts: all weights Kaiming-normal by their fan-in, or as in the published code, convolutions by
their fan-out and linear layers by PyTorch's default."""
INITS: tuple[Init, ...] = ("fan-in", "fan-out")


MOST = {"seed": LARGEST, "seeds": 10**6, "replicas": 10**6, "control_replicas": 10**6}
"""Largest values of counts whose tasks and rows are held together, and of a seed."""
MOST_ELSEWHERE = 10**9


def require_at_least(config: object, **least: int) -> None:
    """Refuse a constant that is no int, below its least value, or beyond what a run could ever hold or finish.

    Raises:
        ValueError: the message names it.
    """
    for name, bound in least.items():
        check_whole(name, getattr(config, name), bound, MOST.get(name, MOST_ELSEWHERE))


def require_positive(config: object, *names: str) -> None:
    """Refuse a constant that is no number, 0, negative, NaN or infinite.

    Raises:
        ValueError: the message names it.
    """
    for name in names:
        check_positive(name, getattr(config, name))


SMALL_IMAGES = ("digits", "fashion_mnist")
"""Those for networks of a few thousand parameters; digits come with scikit-learn."""


def require_small_images(data: str, data_dir: str | None) -> None:
    """Refuse other images than digits or FashionMNIST, and a directory of images for the digits.

    Raises:
        ValueError: the message has the nearest names, or says what to leave out.
    """
    if data not in SMALL_IMAGES:
        raise unknown("data set", data, SMALL_IMAGES)
    if data == "digits" and data_dir is not None:
        raise InvalidValueError(
            f"data_dir is where FashionMNIST is, and the images here are scikit-learn's digits: leave out "
            f"{data_dir}, or take the preset with FashionMNIST"
        )


def require_dynamics(names: Iterable[str]) -> None:
    """Refuse what is no dynamics' name.

    Raises:
        ValueError: the message has the nearest ones.
    """
    if isinstance(names, str):
        raise InvalidTypeError(f"dynamics are several names, ('{names}',), not text")
    for name in names:
        if name not in DYNAMICS:
            raise unknown("dynamics", name, DYNAMICS)


@dataclass(frozen=True)
class ComparisonConfig:
    """Constants that the protocols share which compare dynamics on images; the defaults are the published ones.

    Attributes:
        preset: its name; ``as-published`` keeps the deviations of the published code.
        seeds: independent repetitions: choice of images, random labels, initialisation and noise.
        lr: η of the compared dynamics.
        steps: of the compared dynamics.
        batch_size: B, with replacement.
        rho: standard deviation of the constant noise; None: such that its trace is TrΣ_B where it starts.
        refresh: steps between two computations of a noise's covariance.
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        dynamics: names of the compared ones.
        seed: of everything.
        device: where.
    """

    preset: str = "paper"
    seeds: int = 10
    lr: float = 0.07
    steps: int = 20_000
    batch_size: int = 20
    rho: float | None = None
    refresh: int = 10
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 1000
    dynamics: tuple[str, ...] = COMPARED
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str]

    def __post_init__(self) -> None:
        require_at_least(self, seeds=1, steps=1, batch_size=1, refresh=1, sharpness_draws=2, seed=0)
        require_positive(self, "lr", "sharpness_delta")
        require_dynamics(self.dynamics)

    def rate(self, name: str) -> float:
        """η of one of the compared dynamics."""
        return self.lr

    def of_dynamics(self, name: str) -> dict[str, Any]:
        """The constants that a dynamics is made with."""
        rho = 1.0 if self.rho is None else self.rho
        return {"batch_size": self.batch_size, "rho": rho, "refresh": self.refresh}


@dataclass(frozen=True)
class EscapeConfig(ComparisonConfig):
    """Constants of the escape protocol, :mod:`noisescape.experiments.protocols.escape`.

    Attributes:
        clean: training images with their own label.
        corrupted: training images with a random label.
        gd_lr: learning rate to the minimum.
        gd_arm_lr: η of gradient descent among the compared dynamics; None: that of the others.
        gd_steps: gradient-descent steps to the minimum.
        landmarks: shares of ``gd_steps`` after which Tr(HΣ) and its company are measured on the way.
        k: rank of leading and Hessian noise.
        rescale: whether leading noise is scaled up to TrΣ_B.
        curvature_refresh: as ``refresh``, for the two noises that take eigenvectors of H, which cost more.
        every_step: names of dynamics whose covariance is computed on every step instead.
        penalty: strength s of the control GD on L + s‖∇L‖².
        rtol: relative standard error of what is estimated at the minimum.
        rtol_along: the same on the way there.
    """

    clean: int = 1000
    corrupted: int = 200
    gd_lr: float = 0.1
    gd_arm_lr: float | None = None
    gd_steps: int = 3000
    landmarks: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    k: int = 20
    rescale: bool = True
    curvature_refresh: int = 10
    every_step: tuple[str, ...] = ()
    penalty: float = 0.01
    rtol: float = 0.01
    rtol_along: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, gd_steps=1, k=1, curvature_refresh=1)
        require_positive(self, "gd_lr", "rtol", "rtol_along")
        require_dynamics(self.every_step)
        if self.gd_arm_lr is not None:
            require_positive(self, "gd_arm_lr")
        if not all(0 < share <= 1 for share in self.landmarks):
            raise InvalidValueError(f"landmarks are shares of gd_steps in (0, 1], not {self.landmarks}")

    @override
    def rate(self, name: str) -> float:
        return self.gd_arm_lr if name == "gd" and self.gd_arm_lr is not None else self.lr

    @override
    def of_dynamics(self, name: str) -> dict[str, Any]:
        made = {**super().of_dynamics(name), "k": self.k, "rescale": self.rescale, "strength": self.penalty}
        refresh = dict.fromkeys(TAKES_CURVATURE, self.curvature_refresh) | dict.fromkeys(self.every_step, 1)
        return made | {"refresh": refresh.get(name, self.refresh)}


@dataclass(frozen=True)
class TrainingConfig(ComparisonConfig):
    """Constants of the training protocol, :mod:`noisescape.experiments.protocols.training`.

    Published but for the number of steps, of which we know the published code's only.

    Attributes:
        train: training images.
        test: test images; None: all.
        image_size: pixels a side, 32 or 16.
        width: of the VGG-11's layers, as a share of the published.
        init: of the network, one of :data:`Init`.
        replacement: the sampling law of SGD's batches and of those that a covariance is taken from.
        batches: minibatches from which a covariance is estimated; None: exact, from all samples.
        sharpness_at: steps after which the expected sharpness is measured, beside the last; those beyond it are
            not reached.
        data_dir: where the images are; None: the environment variable NOISESCAPE_DATA, or the hub.
        pixel_low: what black becomes.
        exchanged: train on images of the test split and test on those of the training split.
        level: the training loss that every dynamics trains to, and at which all are compared; None: they are
            compared at the last step.
        quench_steps: of gradient descent, at most, to bring an iterate down to that loss.
        training: what float32 products are rounded to in training, and in what is recorded along it: "float32" or,
            on a GPU that has it, "tf32", as PyTorch's convolutions are unless told otherwise. What is compared at a
            ``level`` is not rounded.
    """

    lr: float = 0.05
    steps: int = 10_000
    batch_size: int = 100
    sharpness_delta: float = 1e-3
    sharpness_draws: int = 100
    dynamics: tuple[str, ...] = ("gd", "gld-constant", "gld-dynamic", "gld-diagonal", "sgd", "gld-full")
    train: int = 25_000
    test: int | None = None
    image_size: int = 32
    width: float = 1.0
    init: Init = "fan-in"
    replacement: bool = True
    batches: int | None = 100
    sharpness_at: tuple[int, ...] = ()
    data_dir: str | None = None
    pixel_low: float = 0.0
    exchanged: bool = False
    level: float | None = None
    quench_steps: int = 300
    training: Literal["float32", "tf32"] = "float32"

    data_set: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, train=1, quench_steps=1)
        if self.level is not None:
            require_positive(self, "level")
        if self.training not in ("float32", "tf32"):
            raise unknown("training", self.training, ("float32", "tf32"))
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)
        if any(step < 0 for step in self.sharpness_at):
            raise InvalidValueError(f"sharpness_at are steps, from 0 on, not {self.sharpness_at}")

    @override
    def of_dynamics(self, name: str) -> dict[str, Any]:
        made = {**super().of_dynamics(name), "k": 20, "rescale": True, "strength": 0.01}
        return made | {"replacement": self.replacement, "batches": self.batches}
