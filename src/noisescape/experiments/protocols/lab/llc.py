"""Chains on models whose coefficient is known, and at what gradient descent and SGD find of a network."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape.dynamics import SGD
from noisescape.experiments.lab.llc import LLCConfig
from noisescape.experiments.problem import small_images
from noisescape.experiments.protocols.lab.seeds import figures, minimum, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import LearningCoefficient, expected_on_quadratic, local_learning_coefficient

SAMPLES = 1000
"""N of the models of known coefficient."""
LOCALISATION = 1.0
"""γ there."""
STEP = 2e-4
"""ε there."""
KNOWN = ("quadratic, D = 2", "x⁴", "x²y²")


def run(config: LLCConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: LLCConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """All estimates of one seed."""
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(KNOWN):
        found = estimated(
            known_model(name),
            torch.zeros(1 if name == "x⁴" else 2, dtype=torch.float64),
            localisation=LOCALISATION,
            lr=STEP,
            steps=config.steps,
            burn_in=config.steps // 10,
            chains=config.chains,
            every=5,
            seed=derived_seed(config.seed, repetition, 10 + place) % 2**31,
        )
        wanted = expected(name, found.scale)
        rows += figures(
            repetition, name, shown(found) | {"expected": wanted, "off": found.estimate.value / wanted - 1}
        )
    made = small_images(config, repetition)
    sgd, theta = SGD(config.sgd_batch), made.risk.parameters()
    generator = torch.Generator(theta.device).manual_seed(derived_seed(config.seed, repetition, 2))
    for step in range(config.sgd_steps):
        rate = config.sgd_lr * min(1.0, 4 * (1 - step / config.sgd_steps))
        theta = theta - rate * made.risk.minibatch_gradient(
            theta, sgd.draw_batch(made.risk, torch.Size(), generator)
        )
    places = {"network, GD minimum": minimum(config, made), "network, SGD": theta}
    for place, (name, theta) in enumerate(places.items()):
        found = estimated(
            made.risk,
            theta,
            localisation=config.localisation,
            lr=config.network_lr,
            steps=config.network_steps,
            burn_in=config.network_steps // 2,
            chains=4,
            batch_size=config.batch_size,
            every=20,
            seed=derived_seed(config.seed, repetition, 20 + place) % 2**31,
        )
        curvatures = torch.linalg.eigvalsh(made.risk.gauss_newton(theta).dense()).clamp_min(0)
        regular = expected_on_quadratic(
            curvatures, scale=found.scale, localisation=config.localisation, lr=config.network_lr
        )
        beside = {"quadratic": regular, "log_over_quadratic": math.log(found.estimate.value / regular)}
        rows += figures(repetition, name, shown(found) | beside | {"loss": float(made.risk.loss(theta))})
    return Outcome(rows, {name.replace(", ", "-").replace(" ", "-"): theta for name, theta in places.items()})


def estimated(risk: EmpiricalRisk, theta: Tensor, **options: Any) -> LearningCoefficient:
    """The estimate; R̂, effective draws and shortfall are among the figures, and not warned of as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return local_learning_coefficient(risk, theta, progress=False, **options)


def shown(found: LearningCoefficient) -> dict[str, float]:
    """An estimate's figures."""
    return {
        "estimate": found.estimate.value,
        "stderr": found.estimate.stderr,
        "r_hat": found.r_hat,
        "effective": found.effective_sample_size,
        "shortfall": found.shortfall if found.shortfall > found.estimate.stderr else 0.0,
    }


def known_model(name: str) -> EmpiricalRisk:
    """N samples of one and the same loss."""

    def losses(theta: Tensor) -> Tensor:
        return loss_of(name, *theta.unbind(-1)).expand(SAMPLES)

    return EmpiricalRisk.from_losses(losses, torch.zeros(1 if name == "x⁴" else 2, dtype=torch.float64))


def loss_of(name: str, x: Tensor, y: Tensor | None = None) -> Tensor:
    """½(x² + y²), of coefficient 1; x⁴, of ¼; x²y², of ½ with multiplicity 2."""
    if y is None:
        return x**4
    return (x**2 + y**2) / 2 if name.startswith("quadratic") else x**2 * y**2


def expected(name: str, scale: float) -> float:
    """E[Nβ·L] under exp(−NβL − (γ/2)‖θ‖²), by quadrature: what the chains would find with ever smaller steps."""
    grid = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    points = (grid,) if name == "x⁴" else (grid[:, None], grid[None, :])
    loss = scale * loss_of(name, *points)
    prior = sum(LOCALISATION / 2 * axis**2 for axis in points)
    density = (-loss - prior).exp()
    return float((loss * density).sum() / density.sum())
