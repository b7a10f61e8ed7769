"""The constants that an experiment's run is fixed by, checked when they are made.

Read by ``--help``, so nothing here waits for torch: dynamics go by their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from noisescape.errors import InvalidValueError, unknown

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
CONTROLS = ("gld-shuffled", "gd-gradient-penalty")
"""Those that stand beside the comparison."""
DYNAMICS = (*COMPARED, *CONTROLS)
"""The names of all dynamics, those of :data:`noisescape.dynamics.DYNAMICS`."""
NOISELESS = ("gd", "gd-gradient-penalty")
"""Those without noise, that have no trace to match."""
TAKES_CURVATURE = ("gld-hessian", "gld-top-eigenvector")
"""Those that take eigenvectors of H, which cost more than what is taken from the noise."""


def require_at_least(config: object, **least: int) -> None:
    """Refuse a constant below its least value.

    Raises:
        ValueError: the message names it.
    """
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise InvalidValueError(f"{name} must be at least {bound}, not {getattr(config, name)}")


def require_positive(config: object, *names: str) -> None:
    """Refuse a constant that is 0, negative or NaN.

    Raises:
        ValueError: the message names it.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise InvalidValueError(f"{name} must be positive, not {getattr(config, name)}")


def require_dynamics(names: Iterable[str]) -> None:
    """Refuse what is no dynamics' name.

    Raises:
        ValueError: the message has the nearest ones.
    """
    for name in names:
        if name not in DYNAMICS:
            raise unknown("dynamics", name, DYNAMICS)


@dataclass(frozen=True)
class EscapeConfig:
    """Constants of the escape protocol, :mod:`noisescape.experiments.protocols.escape`; the defaults are published.

    Attributes:
        preset: its name; ``as-published`` keeps the deviations of the published code.
        seeds: independent repetitions: data split, random labels, initialisation and noise.
        clean: training images with their own label.
        corrupted: training images with a random label.
        gd_lr: learning rate to the minimum.
        gd_steps: gradient-descent steps to the minimum.
        landmarks: shares of ``gd_steps`` after which Tr(HΣ) and its company are measured on the way.
        lr: η of the compared dynamics.
        steps: of the compared dynamics.
        batch_size: B, with replacement.
        k: rank of leading and Hessian noise.
        rho: standard deviation of the constant noise; None: such that its trace is TrΣ_B at the minimum.
        rescale: whether leading noise is scaled up to TrΣ_B.
        refresh: steps between two computations of a noise's covariance.
        curvature_refresh: the same for the two noises that take eigenvectors of H, which cost more.
        penalty: strength s of the control GD on L + s‖∇L‖².
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        rtol: relative standard error of what is estimated at the minimum.
        rtol_along: the same on the way there.
        dynamics: names of the compared ones.
        seed: of everything.
        device: where.
    """

    preset: str = "paper"
    seeds: int = 10
    clean: int = 1000
    corrupted: int = 200
    gd_lr: float = 0.1
    gd_steps: int = 3000
    landmarks: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    lr: float = 0.07
    steps: int = 20_000
    batch_size: int = 20
    k: int = 20
    rho: float | None = None
    rescale: bool = True
    refresh: int = 10
    curvature_refresh: int = 10
    penalty: float = 0.01
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 1000
    rtol: float = 0.01
    rtol_along: float = 0.05
    dynamics: tuple[str, ...] = COMPARED
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str]

    def __post_init__(self) -> None:
        least = dict.fromkeys(("seeds", "gd_steps", "steps", "batch_size", "k", "refresh", "curvature_refresh"), 1)
        require_at_least(self, **least, sharpness_draws=2, seed=0)
        require_positive(self, "gd_lr", "lr", "sharpness_delta", "rtol", "rtol_along")
        if not all(0 < share <= 1 for share in self.landmarks):
            raise InvalidValueError(f"landmarks are shares of gd_steps in (0, 1], not {self.landmarks}")
        require_dynamics(self.dynamics)

    def of_dynamics(self, name: str) -> dict[str, Any]:
        """The constants that a dynamics is made with."""
        return {
            "batch_size": self.batch_size,
            "k": self.k,
            "rho": 1.0 if self.rho is None else self.rho,
            "refresh": self.curvature_refresh if name in TAKES_CURVATURE else self.refresh,
            "rescale": self.rescale,
            "strength": self.penalty,
        }


@dataclass(frozen=True)
class TrainingConfig:
    """Constants of the training protocol, :mod:`noisescape.experiments.protocols.training`.

    The defaults are the published ones, but for the number of steps, which is not known.

    Attributes:
        preset: its name; ``as-published`` keeps the deviations of the published code.
        seeds: independent repetitions: choice of images, initialisation and noise.
        train: training images.
        test: test images; None: all.
        image_size: pixels a side, 32 or 16.
        width: of the VGG-11's layers, as a share of the published.
        lr: η.
        steps: how many.
        batch_size: B, with replacement.
        rho: standard deviation of the constant noise; None: such that its trace is TrΣ_B at the start.
        refresh: steps between two computations of a noise's covariance.
        batches: minibatches from which a covariance is estimated; None: exact, from all samples.
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        dynamics: names of the compared ones.
        data_dir: where the images are; None: the environment variable NOISESCAPE_DATA, or the hub.
        seed: of everything.
        device: where.
        pixel_low: what black becomes.
    """

    preset: str = "paper"
    seeds: int = 10
    train: int = 25_000
    test: int | None = None
    image_size: int = 32
    width: float = 1.0
    lr: float = 0.05
    steps: int = 10_000
    batch_size: int = 100
    rho: float | None = None
    refresh: int = 10
    batches: int | None = 100
    sharpness_delta: float = 1e-3
    sharpness_draws: int = 100
    dynamics: tuple[str, ...] = ("gd", "gld-constant", "gld-dynamic", "gld-diagonal", "sgd", "gld-full")
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"
    pixel_low: float = 0.0

    experiment: ClassVar[str]
    data_set: ClassVar[str]

    def __post_init__(self) -> None:
        least = dict.fromkeys(("seeds", "train", "steps", "batch_size", "refresh"), 1)
        require_at_least(self, **least, sharpness_draws=2, seed=0)
        require_positive(self, "lr", "sharpness_delta")
        require_dynamics(self.dynamics)

    def of_dynamics(self, name: str) -> dict[str, Any]:
        """The constants that a dynamics is made with."""
        return {
            "batch_size": self.batch_size,
            "k": 20,
            "rho": 1.0 if self.rho is None else self.rho,
            "refresh": self.refresh,
            "rescale": True,
            "strength": 0.01,
            "batches": self.batches,
        }
