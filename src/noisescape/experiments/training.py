"""Training from initialisation under each noise: the protocol of the SVHN and CIFAR-10 experiments.

Every dynamics trains the same network from the same parameters on the same images for the same number of
steps. What is asked: which noise generalises best, and do flatter end points generalise better?
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisescape.dynamics import SGD, Dynamics, GLDConstant, GLDDiagonal, GLDDynamic, GLDFull, MatchedTrace
from noisescape.dynamics import dynamics_by_name as by_name
from noisescape.errors import InvalidValueError
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.published import published_dynamics
from noisescape.experiments.statistics import derived_seed, mean_over, measured_every
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome, Task, default_jobs, finish, perform
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate

FINAL_FIGURES = ("loss", "train_accuracy", "test_accuracy", "sharpness/signed", "sharpness/absolute")
COMPARED = ("gd", GLDConstant.name, GLDDynamic.name, GLDDiagonal.name, SGD.name, GLDFull.name)


@dataclass(frozen=True)
class TrainingConfig:
    """Constants of the protocol.

    Attributes:
        preset: its name; ``as-published`` keeps the deviations of the published code.
        seeds: independent repetitions: choice of images, initialisation and noise.
        train: training images.
        test: test images; None: all.
        image_size: pixels a side, 32 or 16.
        width: of the VGG-11's layers, as a share of the published.
        lr: η.
        steps: how many.
        batch_size: B, with replacement.
        rho: standard deviation of the constant noise; None: such that its trace is TrΣ_B at the start.
        refresh: steps between two computations of a noise's covariance.
        batches: minibatches from which a covariance is estimated; None: exact, from all samples.
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        dynamics: names of the compared ones.
        data_dir: where the images are; None: the environment variable NOISESCAPE_DATA, or the hub.
        seed: of everything.
        device: where.
    """

    preset: str
    seeds: int
    train: int
    test: int | None
    image_size: int
    width: float
    lr: float
    steps: int
    batch_size: int
    rho: float | None
    refresh: int
    batches: int | None
    sharpness_delta: float
    sharpness_draws: int
    dynamics: tuple[str, ...] = COMPARED
    data_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str]

    def __post_init__(self) -> None:
        at_least_one = ("seeds", "train", "steps", "batch_size", "refresh")
        for name, least in (*((name, 1) for name in at_least_one), ("sharpness_draws", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("lr", "sharpness_delta"):
            if not getattr(self, name) > 0:
                raise InvalidValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in self.dynamics:
            self.make(name, 1.0)

    def make(self, name: str, trace: float) -> Dynamics:
        """The dynamics called ``name`` with this run's constants; ``trace`` is TrΣ_B at the start."""
        constants = {
            "batch_size": self.batch_size,
            "rho": 1.0 if self.rho is None else self.rho,
            "refresh": self.refresh,
            "batches": self.batches,
            "k": 20,
            "rescale": True,
            "strength": 0.01,
        }
        if self.preset == "as-published":
            return published_dynamics(name, **constants)
        made = by_name(name, **constants)
        return MatchedTrace(made, trace) if isinstance(made, GLDConstant) and self.rho is None else made


def run_training(
    config: TrainingConfig, problem: MakeProblem, out: Path, *, jobs: int | None, resume: bool, progress: bool
) -> Run:
    """Train under every dynamics for every seed and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of every end point, summary.
    """
    # broken data, and constants that do not fit it, are told before anything is written
    problems = [problem(config, repetition) for repetition in range(config.seeds)]
    for name in config.dynamics:
        config.make(name, 1.0).init(problems[0].risk, problems[0].risk.parameters())
    splits = [made.split for made in problems]
    run = Run.begin(
        out,
        experiment=config.experiment,
        config=asdict(config),
        seed=config.seed,
        data=data_identity(splits),
        resume=resume,
    )
    if run.complete:
        return run
    started = time.perf_counter()
    keys = [(name, repetition) for repetition in range(config.seeds) for name in config.dynamics]
    tasks = [Task(f"{name}-{repetition}", _train, (config, problem, repetition, name)) for name, repetition in keys]
    outcomes = perform(
        run,
        tasks,
        jobs=jobs or default_jobs(config.device),
        title=config.experiment,
        progress=progress,
        device=config.device,
    )
    rows = [row for outcome in outcomes for row in outcome.rows]
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors(
        "final",
        {f"{name}/seed-{r}": found.tensors["theta"] for (name, r), found in zip(keys, outcomes, strict=True)},
    )
    return finish(run, rows, _summary(config, rows, dict(splits[0].facts)), started)


def _train(
    config: TrainingConfig, problem: MakeProblem, repetition: int, name: str, *, checkpoint: Path
) -> Outcome:
    made = problem(config, repetition)
    risk, test = made.risk, made.test
    start = risk.parameters()

    def trace_sigma(theta: Tensor) -> float:
        generator = torch.Generator(theta.device).manual_seed(derived_seed(config.seed, repetition, 3))
        variances, _ = SGD(config.batch_size).variances(risk, theta, config.batches, generator)
        return float(variances.sum())

    dynamics = config.make(name, trace_sigma(start))

    def target(risk: EmpiricalRisk, theta: Tensor) -> float:
        """What the trace of the injected noise should be."""
        return dynamics.trace_target if isinstance(dynamics, MatchedTrace) else trace_sigma(theta)

    watch = measured_every(config.steps)
    trajectory = simulate(
        risk,
        dynamics,
        start,
        lr=config.lr,
        steps=config.steps,
        record={
            "loss": recorders.loss,
            "train_accuracy": recorders.accuracy,
            "test_accuracy": recorders.on(test, recorders.accuracy),
            "sharpness": recorders.at_steps(
                recorders.sharpness(config.sharpness_delta, draws=config.sharpness_draws), {config.steps}
            ),
            # at the same steps as the injected noise, so that the two can be compared
            "trace_target": recorders.at_steps(target, range(0, config.steps, watch)),
        },
        every=max(1, config.steps // 25),
        seed=derived_seed(config.seed, repetition, 2),
        noise_every=None if name == "gd" else watch,
        checkpoint=checkpoint,
        progress=False,
    )
    return Outcome(list(trajectory.rows(phase="training", seed=repetition)), {"theta": trajectory.theta})


def _summary(config: TrainingConfig, rows: list[dict[str, Any]], data: dict[str, Any]) -> dict[str, Any]:
    found = {(row["dynamics"], row["metric"], row["step"], row["seed"]): row["value"] for row in rows}

    def final(name: str, metric: str) -> list[float]:
        return [found.get((name, metric, config.steps, seed), math.nan) for seed in range(config.seeds)]

    def mean_trace(name: str, metric: str) -> list[float]:
        """Mean along the trajectory, for every seed."""
        values: list[list[float]] = [[] for _ in range(config.seeds)]
        for (owner, kind, _, seed), value in found.items():
            if (owner, kind) == (name, metric):
                values[seed].append(value)
        return [sum(own) / len(own) if own else 0.0 for own in values]

    return {
        "experiment": config.experiment,
        "preset": config.preset,
        "seed": config.seed,
        "seeds": config.seeds,
        "data": data,
        "final": {
            name: {metric: mean_over(final(name, metric)).to_dict() for metric in FINAL_FIGURES}
            for name in config.dynamics
        },
        "injected_trace": {name: mean_over(mean_trace(name, "injected")).to_dict() for name in config.dynamics},
        "target_trace": {name: mean_over(mean_trace(name, "trace_target")).to_dict() for name in config.dynamics},
    }
