"""Escape from a sharp minimum of a network: the protocol of the FashionMNIST experiment, for any images.

Gradient descent finds a sharp minimum of a network trained on images, some of them randomly labelled. From
there every dynamics runs from the same parameters, on the same data, with noise of the same trace; what each
does to training loss, test accuracy and expected sharpness is compared within seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from noisescape.dynamics import GD
from noisescape.experiments.constants import TAKES_CURVATURE, EscapeConfig
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.protocols.comparison import (
    Compared,
    checked_splits,
    follow,
    make_dynamics,
    refuse_divergence,
)
from noisescape.experiments.protocols.session import Session, rows_at, rows_of
from noisescape.experiments.statistics import mean_over
from noisescape.linops import spectral_density
from noisescape.measurement.indicator import measure
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate

FINAL_METRICS = ("loss", "test_accuracy", "sharpness/signed", "sharpness/absolute")


def run_escape(
    config: EscapeConfig, problem: MakeProblem, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Run the protocol for every seed and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of the minima and of every end point, summary.
    """
    splits = checked_splits(
        config, problem, lambda _, name: make_dynamics(config, name, 1.0)
    )  # before anything is written
    identity = data_identity(splits)
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress, data=identity)
    run = session.run
    if run.complete:
        return run
    repetitions = range(config.seeds)
    descents = session.perform(
        [Task(f"descent-{r}", descend, (config, problem, r)) for r in repetitions], "to the minimum"
    )
    minima = [descent.tensors["theta"] for descent in descents]
    # the longest first, so that no core waits for it at the end
    order = sorted(config.dynamics, key=lambda name: name not in TAKES_CURVATURE)
    escapes = {
        (r, name): Task(f"escape-{name}-{r}", leave, (config, problem, r, minima[r], name))
        for name in order
        for r in repetitions
    }
    surveys = [Task(f"survey-{r}", survey, (config, problem, r, minima[r])) for r in repetitions]
    outcomes = session.perform([*escapes.values(), *surveys], "dynamics")
    escaped = dict(zip(escapes, outcomes, strict=False))
    surveyed = outcomes[len(escapes) :]

    in_order = [escaped[r, name] for name in config.dynamics for r in repetitions]
    rows = rows_of([*descents, *surveyed, *in_order])
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors("minima", {f"seed-{r}": theta for r, theta in enumerate(minima)})
    run.write_tensors("final", {f"{name}/seed-{r}": found.tensors["theta"] for (r, name), found in escaped.items()})
    run.write_tensors(
        "spectra",
        {f"seed-{r}/{part}": tensor for r, found in enumerate(surveyed) for part, tensor in found.tensors.items()},
    )
    return session.finish(rows, summarise(config, rows, [found.notes for found in surveyed], splits[0].facts))


def descend(config: EscapeConfig, problem: MakeProblem, repetition: int, *, checkpoint: Path) -> Outcome:
    """Gradient descent from initialisation to the sharp minimum, with the indicator on the way."""
    made = problem(config, repetition)
    risk, test = made.risk, made.test
    landmarks = sorted({max(1, round(config.gd_steps * share)) for share in config.landmarks})

    along = recorders.conditions(config.batch_size, k=config.k, rtol=config.rtol_along, seed=config.seed)

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
            "along": recorders.at_steps(recorders.tolerant(along), landmarks),
        },
        every=max(1, config.gd_steps // 50),
        checkpoint=checkpoint,
        progress=False,
    )
    refuse_divergence(trajectory, repetition, config.gd_lr)
    return Outcome(list(trajectory.rows(phase="descent", seed=repetition)), {"theta": trajectory.theta})


def survey(
    config: EscapeConfig, problem: MakeProblem, repetition: int, minimum: Tensor, *, checkpoint: Path
) -> Outcome:
    """Everything measured at the minimum."""
    risk = problem(config, repetition).risk
    minimum = minimum.to(config.device)
    found = measure(
        risk, minimum, batch_size=config.batch_size, k=config.k, rtol=config.rtol, seed=config.seed, progress=False
    )
    density = spectral_density(risk.hessian(minimum), steps=60, probes=4, seed=config.seed)
    tensors = {
        "hessian_eigenvalues": found.hessian.values,
        "noise_eigenvalues": found.noise.values,
        "density_grid": density.grid,
        "density": density.density,
        "density_stderr": density.stderr,
    }
    figures = {name: float(estimate.value) for name, estimate in found.estimates().items()}
    rows = rows_at(config.gd_steps, figures, phase="minimum", seed=repetition, dynamics="gd")
    return Outcome(rows, tensors, found.to_dict())


def leave(
    config: EscapeConfig, problem: MakeProblem, repetition: int, minimum: Tensor, name: str, *, checkpoint: Path
) -> Outcome:
    """One dynamics from the minimum."""
    made = problem(config, repetition)

    def trace(theta: Tensor) -> float:
        return float(made.risk.noise_covariance(theta, config.batch_size).trace())

    return follow(
        config,
        made,
        name,
        minimum.to(config.device),
        trace,
        phase="escape",
        repetition=repetition,
        sharpness_at={round(config.steps * share) for share in (0, 0.25, 0.5, 0.75, 1)},
        checkpoint=checkpoint,
    )


def summarise(
    config: EscapeConfig,
    rows: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary of a run: its rows, what was measured at each minimum, and the facts of its images."""
    compared = Compared(config, rows, "escape")

    def change(name: str) -> list[float]:
        before, after = (compared.curves.at(step, "escape", name, "sharpness/signed") for step in (0, config.steps))
        return [late - early for early, late in zip(before, after, strict=True)]

    return {
        "seeds": config.seeds,
        "data": data,
        "minimum": measured,
        "final": compared.final(FINAL_METRICS),
        "sharpness_change": {name: mean_over(change(name)).to_dict() for name in config.dynamics},
        **compared.traces(),
    }
