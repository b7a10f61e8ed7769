"""From the minimum at multiples of η*(B): who leaves, SGD or Gaussian noise whose covariance is kept fixed?

Above η* SGD's noise and the deviation feed each other; noise that is kept fixed cannot. If both leave, it is by
diffusion; if SGD alone does, by instability.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisescape.dynamics import SGD, Additive, Dynamics
from noisescape.experiments.lab.stability import StabilityConfig
from noisescape.experiments.problem import small_images
from noisescape.experiments.protocols.lab.seeds import curve, figures, minimum, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import mean_square_threshold


def run(config: StabilityConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: StabilityConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """One minimum: its thresholds, and the runs from it."""
    made = small_images(config, repetition)
    risk = made.risk
    theta = minimum(config, made)
    rest = {"loss": float(risk.loss(theta)), "gradient": float(risk.gradient(theta).norm())}
    rows = figures(repetition, "minimum", rest)
    for size in config.batch_sizes:
        found = mean_square_threshold(risk, theta, batch_size=size)
        limits = {"threshold": found.threshold, "descent": found.descent, "share": found.threshold / found.descent}
        rows += figures(repetition, f"B = {size}", limits)
        noises: dict[str, Dynamics] = {"sgd": SGD(size), "additive": Additive(risk.noise_covariance(theta, size))}
        for multiple in config.multiples:
            case = case_of(size, multiple)
            lr = multiple * found.threshold
            rows += figures(repetition, case, {"growth": found.growth(lr), "over_descent": lr / found.descent})
            for place, (name, dynamics) in enumerate(noises.items()):
                seeds = [derived_seed(config.seed, repetition, 10 + size, place, run) for run in range(config.runs)]
                losses = [course(config, risk, dynamics, theta, lr, seed) for seed in seeds]
                left = sum(max(each) >= config.left for each in losses) / config.runs
                rows += figures(repetition, case, {f"left/{name}": left})
                rows += curve(repetition, case, f"loss/{name}", enumerate(losses[0]))
    return Outcome(rows, {"theta": theta})


def course(
    config: StabilityConfig, risk: EmpiricalRisk, dynamics: Dynamics, theta: Tensor, lr: float, seed: int
) -> list[float]:
    """The training loss from step to step, until the run has left."""
    generator = torch.Generator(theta.device).manual_seed(seed)
    state = dynamics.init(risk)
    losses = [float(risk.loss(theta))]
    for _ in range(config.steps):
        gradient, state = dynamics.noisy_gradient(risk, theta, state, generator)
        theta = theta - lr * gradient
        loss = float(risk.losses(theta[None]).mean())  # of replicas: one that diverged is no error
        losses.append(loss if loss == loss else float("inf"))
        if losses[-1] >= config.left:
            break
    return losses


def case_of(size: int, multiple: float) -> str:
    """The name of the runs at a multiple of the threshold."""
    return f"B = {size}, {multiple:g} η*"
