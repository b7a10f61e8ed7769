"""γ and μ at the initialisation, at the minimum of gradient descent, and where SGD has trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape.dynamics import SGD
from noisescape.experiments.lab.alignment import AlignmentConfig
from noisescape.experiments.problem import Problem, small_images
from noisescape.experiments.protocols.lab.seeds import figures, minimum, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import alignment_factor, alignment_law

PLACES = ("initialisation", "GD minimum", "SGD")


def run(config: AlignmentConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: AlignmentConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """Three places of one seed."""
    made = small_images(config, repetition)
    found = (made.risk.parameters(), minimum(config, made), trained(config, made, repetition))
    places = dict(zip(PLACES, found, strict=True))
    rows: list[dict[str, Any]] = []
    for name, theta in places.items():
        seed = derived_seed(config.seed, repetition, 3)
        laws = alignment_law(made.risk, theta, per_layer=config.per_layer, seed=seed)
        weights = {tensor: law for tensor, law in laws.items() if tensor.endswith("weight")}
        for number, law in enumerate(weights.values()):
            shown = {"exponent": law.exponent.value, "null_low": law.null_low, "null_high": law.null_high}
            shown |= {"correlation": law.correlation, "points": float(law.points)}
            rows += figures(repetition, f"{name}, tensor {number + 1}", shown)
        middle = float(torch.tensor([law.exponent.value for law in weights.values()]).mean())
        beyond = min(law.exponent.value - law.null_high for law in weights.values())
        factor = alignment_factor(made.risk, theta, rtol=config.rtol, seed=seed)
        summary = {"exponent": middle, "beyond_null": beyond, "mu": factor.value}
        rows += figures(repetition, name, summary | {"loss": float(made.risk.loss(theta))})
    return Outcome(rows, {name.replace(" ", "-"): theta for name, theta in places.items()})


def trained(config: AlignmentConfig, made: Problem, repetition: int) -> Tensor:
    """Where SGD comes to from the initialisation."""
    sgd, theta = SGD(config.batch_size), made.risk.parameters()
    generator = torch.Generator(theta.device).manual_seed(derived_seed(config.seed, repetition, 2))
    for _ in range(config.steps):
        batch = sgd.draw_batch(made.risk, torch.Size(), generator)
        theta = theta - config.lr * made.risk.minibatch_gradient(theta, batch)
    made.risk.loss(theta)  # refuses what is not finite
    return theta
