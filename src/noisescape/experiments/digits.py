"""The escape protocol on scikit-learn's digits: the FashionMNIST experiment at a size that runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from noisescape.dynamics import CONTROLS, DYNAMICS
from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.escape import EscapeConfig, run_escape
from noisescape.experiments.models import digits_net
from noisescape.experiments.problem import Problem, classification
from noisescape.experiments.statistics import derived_seed
from noisescape.runs.run import Run


@dataclass(frozen=True)
class DigitsConfig(EscapeConfig):
    """Constants of the run; see :class:`~noisescape.experiments.escape.EscapeConfig`."""

    preset: str = "quick"
    seeds: int = 3
    clean: int = 1000
    corrupted: int = 200
    gd_lr: float = 0.1
    gd_steps: int = 2000
    landmarks: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    lr: float = 0.07
    steps: int = 240
    batch_size: int = 20
    k: int = 20
    rho: float | None = None
    rescale: bool = True
    refresh: int = 10
    curvature_refresh: int = 10
    penalty: float = 0.01
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 100
    rtol: float = 0.01
    rtol_along: float = 0.05
    dynamics: tuple[str, ...] = tuple(name for name in DYNAMICS if name not in CONTROLS)

    experiment: ClassVar[str] = "digits"


def digits_problem(config: DigitsConfig, repetition: int) -> Problem:
    """One repetition's images and its freshly initialised network."""
    split = corrupted_digits(
        seed=derived_seed(config.seed, repetition, 0), clean=config.clean, corrupted=config.corrupted
    )
    model = digits_net(derived_seed(config.seed, repetition, 1))
    return classification(model, split, config.device)


def run_digits(
    config: DigitsConfig, out: Path, *, jobs: int | None = None, resume: bool = False, progress: bool = True
) -> Run:
    """Run the protocol on digits; see :func:`~noisescape.experiments.escape.run_escape`."""
    return run_escape(config, digits_problem, out, jobs=jobs, resume=resume, progress=progress)
