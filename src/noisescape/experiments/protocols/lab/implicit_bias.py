"""Quadratically parametrised regression from one start under every kind of noise, and under none with a penalty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noisescape.dynamics import GD, SGD, Dynamics, GLDConstant
from noisescape.experiments.lab.implicit_bias import ImplicitBiasConfig
from noisescape.experiments.protocols.lab.seeds import figures, perform_seeds
from noisescape.experiments.statistics import derived_seed
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.simulation.loop import simulate
from noisescape.theory import label_noise_penalty, quadratic_regression, recovery


def run(config: ImplicitBiasConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Measure for every seed and write the run directory."""
    return perform_seeds(config, measure, out, engine=engine, resume=resume, progress=progress)


def measure(config: ImplicitBiasConfig, repetition: int, *, checkpoint: Path) -> Outcome:
    """Every arm on one problem."""
    problem = quadratic_regression(
        config.dimension, config.sparsity, config.samples, seed=derived_seed(config.seed, repetition, 0) % 2**31
    )
    strength = label_noise_penalty(lr=config.lr, delta=config.delta, batch_size=1)
    arms: dict[str, tuple[EmpiricalRisk, Dynamics]] = {
        "gradient descent": (problem.risk, GD()),
        "SGD, B = 1": (problem.risk, SGD(1)),
        "label noise": (problem.risk, problem.label_noise(config.delta)),
        "penalty, no noise": (problem.penalised(strength), GD()),
        **{f"spherical, ρ = {rho:g}": (problem.risk, GLDConstant(rho)) for rho in config.rhos},
    }
    rows: list[dict[str, Any]] = []
    best = float("inf")
    for place, (name, (risk, dynamics)) in enumerate(arms.items()):
        found = simulate(
            risk,
            dynamics,
            problem.start,
            lr=config.rate,
            steps=config.steps,
            replicas=1 if isinstance(dynamics, GD) else config.runs,
            record={},
            seed=derived_seed(config.seed, repetition, 10 + place),
            progress=False,
        )
        errors = recovery(found.theta, problem.truth)
        error = float(errors.nan_to_num(float("inf")).median())
        loss = float(problem.risk.losses(found.theta).mean())
        rows += figures(repetition, name, {"error": error, "loss": loss})
        if name.startswith("spherical"):
            best = min(best, error)
    return Outcome(rows + figures(repetition, "spherical, the best", {"error": best}))
