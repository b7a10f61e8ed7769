"""SVAG from a minimum at learning rates below the threshold of SGD, the losses at the same times."""

from __future__ import annotations

import math
from pathlib import Path

from noisescape.experiments.lab.svag import SVAGConfig
from noisescape.experiments.problem import small_images
from noisescape.experiments.protocols.lab.seeds import figures, minimum, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.theory import mean_square_threshold, sde_gap


def run(config: SVAGConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: SVAGConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """Every rate of one seed."""
    made = small_images(config, repetition)
    theta = minimum(config, made)
    threshold = mean_square_threshold(made.risk, theta, batch_size=config.batch_size).threshold
    rows = figures(repetition, "minimum", {"loss": float(made.risk.loss(theta)), "threshold": threshold})
    for share in config.below:
        found = sde_gap(
            made.risk,
            theta,
            batch_size=config.batch_size,
            lr=share * threshold,
            steps=config.steps,
            ells=config.ells,
            runs=config.runs,
            seed=derived_seed(config.seed, repetition, 2) % 2**31,
        )
        for ell, losses in found.losses.items():
            case = case_of(share, ell)
            gap = found.gap(ell)
            rows += figures(repetition, case, {"gap": gap.value, "gap_stderr": gap.stderr})
            means = losses.mean(0).tolist()
            for place, mean in enumerate(means):
                if math.isfinite(mean):
                    rows += figures(repetition, case, {"curve": mean}, place)
            rows += figures(repetition, case, {"end": means[-1]})
    return Outcome(rows, {"theta": theta})


def case_of(share: float, ell: int) -> str:
    """The name of the runs at one rate and ℓ."""
    return f"η = {share:g} η*, ℓ = {ell}"
