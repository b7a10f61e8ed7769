"""Training from initialisation, compared at the same training loss.

Noise slows training, some more than other: after equally many steps one dynamics has fitted the training set and
another has not, and sharpness and accuracy tell how far each has come. So each trains until the loss of the whole
training set, looked at every so many steps, is at or below a common level; what the steps end above it is quenched
to it by gradient descent. Those that came down are then quenched further to the lowest of their losses, so that
within a repetition all are compared at exactly one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.data import ImageSplit
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.protocols.comparison import Compared, can_be_quenched
from noisescape.experiments.protocols.matched_loss import figures_at
from noisescape.experiments.protocols.session import Session, rows_at, rows_of
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task
from noisescape.theory.basin import at_matched_loss

MATCHED_METRICS = (
    "loss",
    "train_accuracy",
    "test_accuracy",
    "test_loss",
    "sharpness",
    "largest_eigenvalue",
    "taken",
    "quench_steps",
)


def train_to_a_loss(
    config: TrainingConfig,
    problem: MakeProblem,
    splits: list[ImageSplit],
    train: Callable[..., Outcome],
    out: Path,
    *,
    engine: Engine,
    resume: bool,
    progress: bool,
) -> Run:
    """Train every dynamics in every repetition to a common loss, compare them there, and write the run directory.

    Args:
        config: the constants, with a ``level``.
        problem: what a repetition trains on.
        splits: every repetition's images.
        train: the task of one dynamics: ``(config, problem, repetition, name, *, checkpoint)``.
        out: the run's directory.
        engine: where tasks are done.
        resume: whether to go on with what is there.
        progress: whether a terminal shows a bar.
    """
    session = Session.begin(
        config, out, engine=engine, resume=resume, progress=progress, data=data_identity(splits)
    )
    run = session.run
    if run.complete:
        return run
    keys = [(name, repetition) for repetition in range(config.seeds) for name in config.dynamics]
    tasks = [Task(f"{name}-{r}", train, (config, problem, r, name)) for name, r in keys]
    trained = dict(zip(keys, session.perform(tasks, "training"), strict=True))
    own = [{name: trained[name, r] for name in config.dynamics} for r in range(config.seeds)]
    matched = session.perform(
        [
            Task(
                f"matched-{r}",
                match,
                (
                    config,
                    problem,
                    r,
                    {name: outcome.tensors["theta"] for name, outcome in own[r].items()},
                    {name: _taken(outcome) for name, outcome in own[r].items()},
                ),
            )
            for r in range(config.seeds)
        ],
        "at the same loss",
    )
    rows = rows_of([*trained.values(), *matched])
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors(
        "final", {f"{name}/seed-{r}": outcome.tensors["theta"] for (name, r), outcome in trained.items()}
    )
    run.write_tensors(
        "matched",
        {f"{name}/seed-{r}": theta for r in range(config.seeds) for name, theta in matched[r].tensors.items()},
    )
    reached = {(row["dynamics"], row["seed"]) for row in rows if row["metric"] == "reached" and row["value"] == 1}
    return session.finish(
        rows,
        {
            "seeds": config.seeds,
            "data": splits[0].facts,
            "level": config.level,
            "final": Compared(config, rows, "matched").final(MATCHED_METRICS),
            "censored": {
                name: sum((name, r) not in reached for r in range(config.seeds)) for name in config.dynamics
            },
            **Compared(config, rows, "training").traces(),
        },
    )


def match(
    config: TrainingConfig,
    problem: MakeProblem,
    repetition: int,
    ends: Mapping[str, Tensor],
    taken: Mapping[str, int],
    *,
    checkpoint: Path,
) -> Outcome:
    """Where a repetition's dynamics ended, brought to one loss and measured there.

    Args:
        config: the constants, with a ``level``.
        problem: what a repetition trains on.
        repetition: its number.
        ends: θ by dynamics, (D,).
        taken: the steps that each took.
        checkpoint: unused; at most some minutes are lost.

    Returns:
        Rows of the phase "matched" at the last step: ``reached`` is 0 for what diverged or did not come down to the
        level, and nothing else is measured of it. θ of the others.
    """
    made = problem(config, repetition)
    thetas = {name: theta.to(config.device) for name, theta in ends.items()}
    finite = {name: theta for name, theta in thetas.items() if can_be_quenched(made.risk, theta)}
    lr, steps = config.lr, config.quench_steps
    down = at_matched_loss(made.risk, finite, lr=lr, steps=steps, level=config.level) if finite else {}
    reached = {name: found.theta for name, found in down.items() if found.reached}
    same = at_matched_loss(made.risk, reached, lr=lr, steps=steps) if reached else {}
    rows: list[dict[str, Any]] = []
    tensors = {}
    for name in ends:
        quenched = sum(found[name].steps for found in (down, same) if name in found)
        figures = {"reached": 0.0, "taken": float(taken[name]), "quench_steps": float(quenched)}
        if name in same and same[name].reached:
            tensors[name] = same[name].theta
            figures |= {"reached": 1.0} | figures_at(config, made, tensors[name], repetition)
        rows += rows_at(config.steps, figures, phase="matched", seed=repetition, dynamics=name)
    return Outcome(rows, tensors)


def _taken(outcome: Outcome) -> int:
    """The steps that a training took: it ended with a look at the loss."""
    return max(row["step"] for row in outcome.rows if row["metric"] == "loss")
