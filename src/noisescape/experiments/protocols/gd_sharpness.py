"""Full-batch gradient descent from initialisation at several learning rates, λ₁ of the Hessian along it.

What is asked: does λ₁ rise until 2/η, where a quadratic would stop being stable, and stay there?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from noisescape.dynamics import GD
from noisescape.experiments.curves import Curves
from noisescape.experiments.gd_sharpness import GDSharpnessConfig
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.experiments.statistics import mean_over
from noisescape.linops import eigenpairs
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate

SUBSPACE = 12
"""Lanczos vectors for a single eigenpair: fewer products than the 32 of the default, which are for many."""
FINAL_METRICS = ("largest_eigenvalue", "stability", "loss", "train_accuracy", "test_accuracy")


def run_gd_sharpness(
    config: GDSharpnessConfig, problem: MakeProblem, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Descend at every learning rate for every seed and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of every end point, summary.
    """
    splits = [problem(config, repetition).split for repetition in range(config.seeds)]  # before anything is written
    identity = data_identity(splits)
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress, data=identity)
    run = session.run
    if run.complete:
        return run
    keys = [(rate, repetition) for repetition in range(config.seeds) for rate in config.rates]
    outcomes = session.perform([Task(f"gd-{rate:g}-{r}", descend, (config, problem, r, rate)) for rate, r in keys])
    rows = rows_of(outcomes)
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors(
        "final",
        {
            f"rate-{rate:g}/seed-{r}": found.tensors["theta"]
            for (rate, r), found in zip(keys, outcomes, strict=True)
        },
    )
    return session.finish(rows, summarise(config, rows, splits[0].facts))


def descend(
    config: GDSharpnessConfig, problem: MakeProblem, repetition: int, rate: float, *, checkpoint: Path
) -> Outcome:
    """Gradient descent at one learning rate."""
    made = problem(config, repetition)
    right = recorders.metric(as_labelled)
    trajectory = simulate(
        made.risk,
        GD(),
        made.risk.parameters(),
        lr=rate,
        steps=config.steps,
        record={
            "loss": recorders.loss,
            "train_accuracy": right,
            "test_accuracy": recorders.on(made.test, right),
            "largest_eigenvalue": largest_eigenvalue,
        },
        every=config.measure_every,
        checkpoint=checkpoint,
        progress=False,
    )
    rows = [*trajectory.rows(phase="training", seed=repetition, rate=rate)]
    return Outcome(rows, {"theta": trajectory.theta})


def largest_eigenvalue(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """λ₁ of H, to a relative accuracy of 10⁻³."""
    return eigenpairs(risk.hessian(theta), 1, tol=1e-3, subspace=SUBSPACE).values[0]


def as_labelled(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is that of the label, for one-hot targets, (n,)."""
    return (outputs.argmax(-1) == targets.argmax(-1)).to(outputs.dtype)


def summarise(
    config: GDSharpnessConfig, rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Where every learning rate ended, over seeds; ``stability`` is λ₁·η/2, 1 at the edge."""
    curves = Curves(rows, config.seeds, by=("rate", "metric"))
    final = {}
    for rate in config.rates:
        ends = {metric: curves.at(config.steps, rate, metric) for metric in FINAL_METRICS}
        ends["stability"] = [rate * value / 2 for value in ends["largest_eigenvalue"]]
        final[f"{rate:g}"] = {metric: mean_over(values).to_dict() for metric, values in ends.items()}
    return {"seeds": config.seeds, "data": data, "final": final}
