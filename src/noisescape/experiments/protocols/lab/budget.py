"""SGD with and without momentum from the initialisation, batch sharpness and λ₁ along it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.lab.budget import BudgetConfig
from noisescape.experiments.models import fully_connected
from noisescape.experiments.problem import Problem, classification, one_hot_regression
from noisescape.experiments.protocols.lab.seeds import figures, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.linops import eigenpairs
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import batch_sharpness, batch_sharpness_limits

CLASSES = 10
SUBSPACE = 12
"""Lanczos vectors for a single eigenpair."""


def run(config: BudgetConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: BudgetConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """Every run of one seed."""
    rows: list[dict[str, Any]] = []
    for size in config.batch_sizes:
        for momentum in config.momenta:
            made = problem(config, repetition, "squared")
            rows += trained(config, made, repetition, size, config.lr, momentum, case_of(size, momentum))
    size = config.batch_sizes[0]
    made = problem(config, repetition, "cross-entropy")
    rows += trained(config, made, repetition, size, config.entropy_lr, 0.0, f"B = {size}, cross-entropy")
    return Outcome(rows)


def problem(config: BudgetConfig, repetition: int, loss: str) -> Problem:
    """The images of a seed and its freshly initialised network, under one of two losses."""
    split = corrupted_digits(
        seed=derived_seed(config.seed, repetition, 0), clean=config.clean, corrupted=config.corrupted
    )
    widths = (split.images[0].numel(), *config.widths, CLASSES)
    model = fully_connected(derived_seed(config.seed, repetition, 1), widths)
    if loss == "squared":
        return one_hot_regression(model, split, CLASSES, config.device)
    return classification(model, split, config.device)


def trained(
    config: BudgetConfig, made: Problem, repetition: int, size: int, lr: float, momentum: float, case: str
) -> list[dict[str, Any]]:
    """One training, measured along it."""
    risk, lr = made.risk, lr * (1 - momentum)
    theta = risk.parameters()
    velocity = torch.zeros_like(theta)
    generator = torch.Generator(theta.device).manual_seed(derived_seed(config.seed, repetition, 2, size))
    level, full = batch_sharpness_limits(lr, momentum)
    rows: list[dict[str, Any]] = []
    edges: dict[int, float] = {}
    loss = math.nan
    for step in range(config.steps + 1):
        if step % config.measure_every == 0 or step == config.steps:
            loss = float(risk.losses(theta[None]).mean())
            found = {"loss": loss}
            if math.isfinite(loss):
                sharp = batch_sharpness(risk, theta, batch_size=size, draws=config.draws, seed=step)
                largest = float(eigenpairs(risk.hessian(theta), 1, tol=1e-2, subspace=SUBSPACE).values[0])
                found |= {
                    "edge": sharp.mean_of_ratios.value / level,
                    "edge_of_means": sharp.ratio_of_means.value / level,
                    "largest": largest / full,
                }
            rows += figures(repetition, case, found, step)
            edges |= {step: found["edge_of_means"]} if "edge_of_means" in found else {}
        if step < config.steps:
            batch = torch.randint(risk.sample_count, (size,), generator=generator, device=theta.device)
            velocity = momentum * velocity + risk.minibatch_gradient(theta, batch)
            theta = theta - lr * velocity
    last = [edge for step, edge in edges.items() if step > 0.75 * config.steps]
    before = [edge for step, edge in edges.items() if 0.5 * config.steps < step <= 0.75 * config.steps]
    if last and before and math.isfinite(loss):  # single iterates go up and down by a third
        late = {"settled": sum(last) / len(last), "before": sum(before) / len(before)}
        rows += figures(repetition, case, late)
    return rows


def case_of(size: int, momentum: float) -> str:
    """The name of the runs at one batch size and momentum."""
    return f"B = {size}" if momentum == 0 else f"B = {size}, β = {momentum:g}"
