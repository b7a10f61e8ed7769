"""Escape from a sharp minimum on real images: the FashionMNIST protocol at the size of scikit-learn's digits.

Gradient descent finds a sharp minimum of a small convolutional network on 1,000 clean and 200 randomly
labelled digits. From there every dynamics runs from the same parameters, on the same data, at the noise level
of the same minibatch; what each does to training loss, test accuracy and expected sharpness is compared
within seeds.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape import recorders
from noisescape.data import corrupted_digits
from noisescape.dynamics import DYNAMICS, GD, dynamics_by_name
from noisescape.experiments.parallel import default_jobs, run_all
from noisescape.experiments.statistics import derived_seed, mean_over
from noisescape.indicators import measure
from noisescape.linops import ToleranceWarning, product_trace, spectral_density, trace
from noisescape.models import digits_net
from noisescape.risk import EmpiricalRisk
from noisescape.runs import Run, tidy
from noisescape.simulate import simulate

FINAL_FIGURES = ("loss", "test_accuracy", "sharpness/signed", "sharpness/absolute", "noise_trace")


@dataclass(frozen=True)
class DigitsConfig:
    """Constants of the run.

    Attributes:
        seeds: independent repetitions: data split, random labels, initialisation and noise.
        clean: training images with their own label.
        corrupted: training images with a random label.
        gd_lr: learning rate to the minimum.
        gd_steps: gradient-descent steps to the minimum.
        lr: η of the compared dynamics.
        steps: of the compared dynamics.
        batch_size: B, with replacement.
        k: rank of leading and Hessian noise.
        rho: standard deviation of the constant noise.
        refresh: steps between two computations of a noise's covariance.
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        dynamics: names of the compared ones.
        seed: of everything.
        device: where.
    """

    seeds: int = 3
    clean: int = 1000
    corrupted: int = 200
    gd_lr: float = 0.1
    gd_steps: int = 2000
    lr: float = 0.07
    steps: int = 240
    batch_size: int = 20
    k: int = 20
    rho: float = 1e-3
    refresh: int = 10
    sharpness_delta: float = 1e-2
    sharpness_draws: int = 100
    dynamics: tuple[str, ...] = tuple(DYNAMICS)
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least_one = ("seeds", "gd_steps", "steps", "batch_size", "k", "refresh")
        for name, least in (*((name, 1) for name in at_least_one), ("sharpness_draws", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("gd_lr", "lr", "sharpness_delta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in self.dynamics:
            self.make(name)

    def make(self, name: str) -> Any:
        """The dynamics called ``name`` with this run's constants."""
        return dynamics_by_name(name, batch_size=self.batch_size, k=self.k, rho=self.rho, refresh=self.refresh)


def digits_risks(config: DigitsConfig, repetition: int) -> tuple[EmpiricalRisk, EmpiricalRisk]:
    """Training and test risk of one repetition, the network freshly initialised."""
    split = corrupted_digits(
        seed=derived_seed(config.seed, repetition, 0), clean=config.clean, corrupted=config.corrupted
    )
    model = digits_net(derived_seed(config.seed, repetition, 1)).to(config.device)
    train = (split.images.to(config.device), split.labels.to(config.device))
    test = (split.test_images.to(config.device), split.test_labels.to(config.device))
    risk = EmpiricalRisk(model, torch.nn.functional.cross_entropy, train)
    return risk, risk.with_data(test)


def run_digits(config: DigitsConfig, out: Path, *, jobs: int | None = None, progress: bool = True) -> Run:
    """Run the protocol for every seed and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of the minima and of every end point, summary.
    """
    run = Run.create(out, experiment="digits", config=asdict(config), seed=config.seed)
    started = time.perf_counter()
    jobs = jobs or default_jobs(config.device)
    repetitions = range(config.seeds)
    descents = run_all(
        _descend,
        [(config, r) for r in repetitions],
        jobs=jobs,
        title="digits: to the minimum",
        progress=progress,
    )
    minima = [descent.theta for descent in descents]
    run.write_tensors("minima", {f"seed-{r}": theta for r, theta in enumerate(minima)})
    surveys = [(_survey, config, r, minima[r]) for r in repetitions]
    escapes = [(_escape, config, r, minima[r], name) for name in config.dynamics for r in repetitions]
    outcomes = run_all(_call, [*surveys, *escapes], jobs=jobs, title="digits: dynamics", progress=progress)
    surveyed, escaped = outcomes[: len(surveys)], outcomes[len(surveys) :]

    rows = [row for outcome in [*descents, *outcomes] for row in outcome.rows]
    run.write_metrics(tidy(rows))
    run.write_tensors(
        "final",
        {f"{task[4]}/seed-{task[2]}": found.theta for task, found in zip(escapes, escaped, strict=True)},
    )
    run.write_tensors(
        "spectra",
        {f"seed-{r}/{part}": tensor for r, found in enumerate(surveyed) for part, tensor in found.extra.items()},
    )
    run.write_summary(_summary(config, rows, [found.measured for found in surveyed], time.perf_counter() - started))
    return run


@dataclass(frozen=True)
class _Outcome:
    """What one task leaves behind."""

    rows: list[dict[str, Any]]
    theta: Tensor
    extra: dict[str, Tensor]
    measured: dict[str, Any]


def _call(function: Any, *arguments: Any) -> _Outcome:
    outcome: _Outcome = function(*arguments)
    return outcome


def _descend(config: DigitsConfig, repetition: int) -> _Outcome:
    """Gradient descent from initialisation to the sharp minimum, with the indicator on the way."""
    risk, test = digits_risks(config, repetition)
    landmarks = sorted({round(config.gd_steps * share) for share in (0.05, 0.1, 0.25, 0.5, 1)})

    def indicator(risk: EmpiricalRisk, theta: Tensor) -> dict[str, float]:
        covariance = risk.noise_covariance(theta, config.batch_size)
        hessian = risk.hessian(theta)
        with warnings.catch_warnings():
            # where TrH nearly cancels no tolerance is reached; the standard error is recorded and says so
            warnings.simplefilter("ignore", ToleranceWarning)
            found = product_trace(hessian, covariance, rtol=0.05, deflate=20, max_products=200)
            total = trace(hessian, rtol=0.05, max_products=100)
        reference = total.scaled(float(covariance.trace()) / risk.dimension)
        return {
            "value": found.value,
            "stderr": found.stderr,
            "reference": reference.value,
            "reference_stderr": reference.stderr,
        }

    trajectory = simulate(
        risk,
        GD(),
        risk.parameters(),
        lr=config.gd_lr,
        steps=config.gd_steps,
        record={
            "loss": recorders.loss,
            "train_accuracy": recorders.accuracy,
            "test_accuracy": recorders.on(test, recorders.accuracy),
            "trace_h_sigma": recorders.at_steps(indicator, landmarks),
        },
        every=max(1, config.gd_steps // 50),
        progress=False,
    )
    if bool(trajectory.diverged):
        raise RuntimeError(
            f"gradient descent diverged at step {int(trajectory.diverged_at)} of repetition {repetition}; there is "
            f"no minimum to leave. Lower gd_lr (now {config.gd_lr:g})"
        )
    rows = list(trajectory.rows(phase="descent", seed=repetition))
    return _Outcome(rows, trajectory.theta, {}, {})


def _survey(config: DigitsConfig, repetition: int, minimum: Tensor) -> _Outcome:
    """Everything measured at the minimum."""
    risk, _ = digits_risks(config, repetition)
    found = measure(risk, minimum, batch_size=config.batch_size, k=config.k, seed=config.seed)
    density = spectral_density(risk.hessian(minimum), steps=60, probes=4, seed=config.seed)
    extra = {
        "hessian_eigenvalues": found.hessian.values,
        "noise_eigenvalues": found.noise.values,
        "density_grid": density.grid,
        "density": density.density,
        "density_stderr": density.stderr,
    }
    rows = [
        {
            "phase": "minimum",
            "seed": repetition,
            "dynamics": "gd",
            "replica": 0,
            "step": config.gd_steps,
            "metric": name,
            "value": estimate.value,
        }
        for name, estimate in found.estimates().items()
    ]
    return _Outcome(rows, minimum, extra, found.to_dict())


def _escape(config: DigitsConfig, repetition: int, minimum: Tensor, name: str) -> _Outcome:
    """One dynamics from the minimum."""
    risk, test = digits_risks(config, repetition)
    dynamics = config.make(name)

    def noise_trace(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        return dynamics.covariance(risk, theta).trace()

    watch: dict[str, recorders.Recorder] = {
        "loss": recorders.loss,
        "test_accuracy": recorders.on(test, recorders.accuracy),
        "train_accuracy": recorders.accuracy,
        "sharpness": recorders.at_steps(
            recorders.sharpness(config.sharpness_delta, draws=config.sharpness_draws),
            {round(config.steps * share) for share in (0, 0.25, 0.5, 0.75, 1)},
        ),
        "noise_trace": recorders.at_steps(noise_trace, {0, config.steps}),
    }
    trajectory = simulate(
        risk,
        dynamics,
        minimum,
        lr=config.lr,
        steps=config.steps,
        record=watch,
        every=max(1, config.steps // 30),
        seed=derived_seed(config.seed, repetition, 2),
        progress=False,
    )
    rows = list(trajectory.rows(phase="escape", seed=repetition))
    return _Outcome(rows, trajectory.theta, {}, {})


def _summary(
    config: DigitsConfig, rows: list[dict[str, Any]], measured: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    def at(name: str, metric: str, step: int) -> list[float]:
        """One value a seed, NaN for those that stopped before."""
        chosen = {
            row["seed"]: row["value"]
            for row in rows
            if (row["phase"], row["dynamics"], row["metric"], row["step"]) == ("escape", name, metric, step)
        }
        return [chosen.get(seed, math.nan) for seed in range(config.seeds)]

    final = {
        name: {metric: mean_over(at(name, metric, config.steps)).to_dict() for metric in FINAL_FIGURES}
        for name in config.dynamics
    }
    change = {
        name: mean_over(
            [
                after - before
                for before, after in zip(
                    at(name, "sharpness/signed", 0), at(name, "sharpness/signed", config.steps), strict=True
                )
            ]
        ).to_dict()
        for name in config.dynamics
    }
    return {
        "experiment": "digits",
        "seed": config.seed,
        "seeds": config.seeds,
        "minimum": measured,
        "final": final,
        "sharpness_change": change,
        "seconds": seconds,
    }
