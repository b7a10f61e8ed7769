"""Training from initialisation under each noise: the protocol of the SVHN and CIFAR-10 experiments.

Every dynamics trains the same network from the same parameters on the same images, for the same number of steps or
to the same training loss (:mod:`noisescape.experiments.protocols.matched_training`). What is asked: which noise
generalises best, and do flatter end points generalise better?
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from noisescape.dynamics import SGD
from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.data import ImageSplit
from noisescape.experiments.noise_knob import NoiseKnobConfig
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.protocols.comparison import Compared, checked_splits, follow, make_dynamics
from noisescape.experiments.protocols.matched_loss import Fallen
from noisescape.experiments.protocols.matched_training import train_to_a_loss
from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.experiments.statistics import derived_seed
from noisescape.linops.precision import in_tf32
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task

FINAL_METRICS = ("loss", "train_accuracy", "test_accuracy", "sharpness/signed", "sharpness/absolute")


def run_training(
    config: TrainingConfig, problem: MakeProblem, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Train under every dynamics for every seed and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of every end point, summary.
    """
    splits = checked_splits(
        config, problem, lambda _, name: make_dynamics(config, name, 1.0)
    )  # before anything is written
    if config.level is not None:
        return train_to_a_loss(config, problem, splits, train, out, engine=engine, resume=resume, progress=progress)
    return train_from_initialisation(
        config, problem, splits, train, FINAL_METRICS, out, engine=engine, resume=resume, progress=progress
    )


def train_from_initialisation(
    config: TrainingConfig | NoiseKnobConfig,
    problem: MakeProblem,
    splits: list[ImageSplit],
    train: Callable[..., Outcome],
    final_metrics: Sequence[str],
    out: Path,
    *,
    engine: Engine,
    resume: bool,
    progress: bool,
) -> Run:
    """Do a task for every noise and every seed, and write the run directory.

    Args:
        config: the constants, with the noises in ``dynamics``.
        problem: what a repetition trains on.
        splits: every repetition's images.
        train: the task: ``(config, problem, repetition, name, *, checkpoint)``.
        final_metrics: those compared at the end.
        out: the run's directory.
        engine: where tasks are done.
        resume: whether to go on with what is there.
        progress: whether a terminal shows a bar.
    """
    identity = data_identity(splits)
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress, data=identity)
    run = session.run
    if run.complete:
        return run
    keys = [(name, repetition) for repetition in range(config.seeds) for name in config.dynamics]
    outcomes = session.perform([Task(f"{name}-{r}", train, (config, problem, r, name)) for name, r in keys])
    rows = rows_of(outcomes)
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors(
        "final",
        {f"{name}/seed-{r}": found.tensors["theta"] for (name, r), found in zip(keys, outcomes, strict=True)},
    )
    compared = Compared(config, rows, "training")
    facts = {"seeds": config.seeds, "data": splits[0].facts}
    return session.finish(rows, {**facts, "final": compared.final(final_metrics), **compared.traces()})


def train(config: TrainingConfig, problem: MakeProblem, repetition: int, name: str, *, checkpoint: Path) -> Outcome:
    """One dynamics from the initialisation, to the last step or to the loss at which all are compared."""
    made = problem(config, repetition)
    risk = made.risk

    def trace(theta: Tensor) -> float:
        generator = torch.Generator(theta.device).manual_seed(derived_seed(config.seed, repetition, 3))
        sgd = SGD(config.batch_size, replacement=config.replacement)
        variances, _ = sgd.variances(risk, theta, config.batches, generator)
        return float(variances.sum())

    with in_tf32() if config.training == "tf32" else contextlib.nullcontext():
        return follow(
            config,
            made,
            name,
            risk.parameters(),
            trace,
            phase="training",
            repetition=repetition,
            sharpness_at={*config.sharpness_at, *([config.steps] if config.level is None else [])},
            checkpoint=checkpoint,
            until=None if config.level is None else Fallen(config.level),
        )
