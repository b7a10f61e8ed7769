"""Flatter at the same training loss? The protocol that decides the paper's headline.

Gradient descent finds a minimum and is settled there: at rest, and stable at the rate of what follows. From it

* SGD runs until it has left and come back to the minimum's training loss;
* the other noises run as long, those that are yoked with the trace that SGD's noise had, step by step; then all are
  quenched to that loss by gradient descent;
* gradient descent goes on from the minimum to exactly the losses at which the others are compared.

Sharpness, accuracy and the barrier to the minimum are so compared between iterates of one loss, within seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisescape.dynamics import GD, Dynamics, Yoked, dynamics_by_name
from noisescape.experiments.constants import TrainingConfig
from noisescape.experiments.curves import Curves
from noisescape.experiments.data import ImageSplit
from noisescape.experiments.matched_ends import (
    COLUMNS,
    End,
    ends,
    level_suffix,
    noise_seeds,
    of_reached,
    seed_means,
)
from noisescape.experiments.matched_loss import (
    BRIEF,
    CONTROLS,
    MEASURED_EVERY,
    SMALL_RATE,
    YOKED,
    MatchedLossConfig,
)
from noisescape.experiments.problem import MakeProblem, Problem, data_identity, data_tensors
from noisescape.experiments.protocols.comparison import can_be_quenched, checked_splits, refuse_divergence
from noisescape.experiments.protocols.session import Session, rows_at, rows_of
from noisescape.experiments.statistics import derived_seed, mean_over, measured_every
from noisescape.measurement.sharpness import expected_sharpness, layer_relative_sharpness
from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian_pairs import leading_hessian_pairs
from noisescape.risk.subsets import restricted
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.simulation.records import Record, Trajectory
from noisescape.theory.basin import Quenched, barrier, quench, settle

LOSS_EVERY = 10
"""Steps between two looks at the loss of the whole training set; each costs as much as some ten steps of SGD."""
ACCURACY_EVERY = 200
BATCHES = 32
"""Of which the median of λ₁ is taken at a minimum."""


def run_matched_loss(
    config: MatchedLossConfig, problem: MakeProblem, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Run the protocol for every seed and write the run directory.

    Returns:
        The run, complete: metrics, the minima and what the arms ended in, summary.
    """
    splits = checked_splits(config, problem, lambda _, name: _dynamics(config, name))  # before anything is written
    session = Session.begin(
        config, out, engine=engine, resume=resume, progress=progress, data=data_identity(splits)
    )
    run = session.run
    if run.complete:
        return run
    repetitions = range(config.seeds)
    found: dict[str, Outcome] = {}

    def perform(tasks: Sequence[Task], what: str) -> None:
        outcomes = session.perform(tasks, what)
        found.update((task.key, outcome) for task, outcome in zip(tasks, outcomes, strict=True))

    perform([Task(f"minimum-{r}", find_minimum, (config, problem, r)) for r in repetitions], "minima")
    minima = [found[f"minimum-{r}"].tensors["theta"] for r in repetitions]
    own = [name for name in config.dynamics if name not in ("gd", *YOKED)]
    yoked = [name for name in config.dynamics if name in YOKED]
    arms = [
        (name, r, noise)
        for r in repetitions
        for name in own
        for noise in range(noise_seeds(name, config.noise_seeds))
    ]
    perform(
        [
            Task(f"{name}-{r}-{noise}", leave, (config, problem, r, minima[r], name, noise))
            for name, r, noise in arms
        ],
        "from the minima",
    )
    if yoked:
        traces = [found[f"sgd-{r}-0"].tensors["traces"] for r in repetitions]
        perform(
            [
                Task(f"{name}-{r}-0", follow_traces, (config, problem, r, minima[r], name, traces[r]))
                for r in repetitions
                for name in yoked
            ],
            "at SGD's trace",
        )
        arms += [(name, r, 0) for r in repetitions for name in yoked]
    targets = [
        [
            (row["value"], row["dynamics"], row["replica"], row["metric"].removeprefix("loss"))
            for name, repetition, noise in arms
            if repetition == r
            for row in found[f"{name}-{r}-{noise}"].rows
            if row["phase"] == "matched" and row["metric"].partition("@")[0] == "loss"
        ]
        for r in repetitions
    ]
    perform(
        [Task(f"gd-{r}", go_on, (config, problem, r, minima[r], targets[r])) for r in repetitions],
        "gradient descent, to the same losses",
    )
    rows = rows_of(found.values())
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors("minima", {f"seed-{r}": theta for r, theta in enumerate(minima)})
    ended = {f"{name}/seed-{r}/noise-{noise}": found[f"{name}-{r}-{noise}"].tensors for name, r, noise in arms}
    run.write_tensors("final", {key: tensors["theta"] for key, tensors in ended.items()})
    for level in config.levels:  # what was compared, which is not where the noise ended
        what = f"matched{level_suffix(level, config.levels)}"
        there = {key: tensors[what] for key, tensors in ended.items() if what in tensors}
        if there:
            run.write_tensors(what, there)
    return session.finish(rows, summarise(config, rows, splits))


# ---------------------------------------------------------------------- to the minimum


def find_minimum(config: MatchedLossConfig, problem: MakeProblem, repetition: int, *, checkpoint: Path) -> Outcome:
    """Gradient descent from initialisation, and on until it is at rest."""
    made = problem(config, repetition)
    trajectory = simulate(
        made.risk,
        GD(),
        made.risk.parameters(),
        lr=config.gd_lr,
        steps=config.gd_steps,
        record=_curves(made),
        every=max(1, config.gd_steps // 60),
        checkpoint=checkpoint,
        progress=False,
    )
    refuse_divergence(trajectory, repetition, config.gd_lr)
    found = settle(
        made.risk,
        trajectory.theta,
        lr=config.settle_lr,
        steps=config.settle_steps,
        gradient_norm=config.settled_gradient,
        largest_eigenvalue=config.settled_stability / config.lr,
    )
    label = _Label(repetition, "gd", 0)
    rows = [
        *trajectory.rows(phase="descent", seed=repetition),
        *label.rows(
            "minimum",
            config.gd_steps + found.steps,
            {
                **figures_at(config, made, found.theta, repetition),
                "gradient_norm": found.gradient_norm,
                "settled": float(found.settled),
                "settle_steps": float(found.steps),
                "batch_eigenvalue": batch_eigenvalue(config, made, found.theta, repetition),
            },
        ),
    ]
    return Outcome(rows, {"theta": found.theta})


# ---------------------------------------------------------------------- from the minimum


@dataclass(frozen=True)
class Returned:
    """Whether the loss was above ``left`` at some step recorded, and at one after it at most ``level``."""

    left: float
    level: float

    def __call__(self, records: Mapping[str, Record]) -> bool:
        """Of a run's records, the loss among them."""
        losses = records["loss"].values
        (gone,) = (losses > self.left).nonzero(as_tuple=True)
        return len(gone) > 0 and bool((losses[gone[0] :] <= self.level).any())


@dataclass(frozen=True)
class Fallen:
    """Whether the loss was at most ``level`` at the last step recorded."""

    level: float

    def __call__(self, records: Mapping[str, Record]) -> bool:
        """Of a run's records, the loss among them."""
        return bool(records["loss"].values[-1] <= self.level)


@dataclass(frozen=True)
class _Course:
    """How an arm with noise of its own sets out."""

    start: Tensor
    lr: float
    steps: int

    @classmethod
    def of(cls, config: MatchedLossConfig, made: Problem, name: str, minimum: Tensor) -> _Course:
        start = made.risk.parameters() if name == "sgd-from-initialisation" else minimum
        lr = SMALL_RATE if name == "sgd-small-rate" else config.lr
        return cls(start, lr, min(BRIEF, config.steps) if name == "gd-after-sgd" else config.steps)


def leave(
    config: MatchedLossConfig,
    problem: MakeProblem,
    repetition: int,
    minimum: Tensor,
    name: str,
    noise: int,
    *,
    checkpoint: Path,
) -> Outcome:
    """An arm with noise of its own: until it has left and come back to the minimum's loss, then to lower ones."""
    made = problem(config, repetition)
    minimum = minimum.to(config.device)
    floor = float(made.risk.loss(minimum))
    course = _Course.of(config, made, name, minimum)
    dynamics = _dynamics(config, name)
    label = _Label(repetition, name, noise)
    first = name == "sgd" and noise == 0
    rows: list[dict[str, Any]] = []
    traces: dict[int, float] = {}
    matched = _Matched(config, made, minimum, label)
    theta, taken = course.start, 0

    def leg(number: int, steps: int, until: Any, **records: recorders.Recorder) -> Trajectory:
        nonlocal theta, taken
        run = simulate(
            made.risk,
            dynamics,
            theta,
            lr=course.lr,
            steps=steps,
            record={**_curves(made), **records},
            every=LOSS_EVERY,
            seed=derived_seed(config.seed, repetition, 2, noise, number),
            checkpoint=checkpoint.with_name(f"leg-{number}-{checkpoint.name}"),
            progress=False,
            until=until,
        )
        rows.extend(label.curve(run, taken))
        theta, taken = run.theta, taken + run.taken
        return run

    for number, level in enumerate(config.levels):
        steps = course.steps - taken
        if steps > 0 and bool(torch.isfinite(theta).all()):
            aim = level * floor
            if number == 0:
                due = _traced(config) if first and _any_yoked(config) else ()
                watched = {"trace_target": recorders.at_steps(_trace_of(config), due)} if due else {}
                run = leg(0, steps, Returned(floor + config.left, aim), **watched)
                if due:
                    record = run.records["trace_target"]
                    traces = dict(zip(record.steps.tolist(), record.values.tolist(), strict=True))
                    run_length = run.taken
            elif float(made.risk.loss(theta)) > aim:
                leg(number, steps, Fallen(aim))
        rows += matched.at(level, theta, taken)
    if first and 0 < taken < config.curve_steps and bool(torch.isfinite(theta).all()):
        leg(len(config.levels), config.curve_steps - taken, None)
    tensors = {"theta": theta, **matched.thetas}
    if traces:
        tensors["traces"] = torch.tensor(np.interp(range(run_length), [*traces], [*traces.values()]))
    return Outcome(rows, tensors)


def follow_traces(
    config: MatchedLossConfig,
    problem: MakeProblem,
    repetition: int,
    minimum: Tensor,
    name: str,
    traces: Tensor,
    *,
    checkpoint: Path,
) -> Outcome:
    """An arm yoked to SGD: as many steps, with noise of the trace that SGD's had at each."""
    made = problem(config, repetition)
    minimum = minimum.to(config.device)
    label = _Label(repetition, name, 0)
    watch = MEASURED_EVERY.get(name, measured_every(len(traces)))
    trajectory = simulate(
        made.risk,
        Yoked(_dynamics(config, name), traces),
        minimum,
        lr=config.lr,
        steps=len(traces),
        record=_curves(made),
        every=LOSS_EVERY,
        seed=derived_seed(config.seed, repetition, 2, 0, 0),
        noise_every=watch,
        checkpoint=checkpoint,
        progress=False,
    )
    rows = [*label.curve(trajectory, 0)]
    for step in range(0, len(traces), watch):
        rows += label.rows("escape", step, {"trace_target": float(traces[step])})
    matched = _Matched(config, made, minimum, label)
    for level in config.levels:
        rows += matched.at(level, trajectory.theta, trajectory.taken)
    return Outcome(rows, {"theta": trajectory.theta, **matched.thetas})


def go_on(
    config: MatchedLossConfig,
    problem: MakeProblem,
    repetition: int,
    minimum: Tensor,
    targets: Sequence[tuple[float, str, int, str]],
    *,
    checkpoint: Path,
) -> Outcome:
    """Gradient descent on from the minimum, measured at the loss of everything it is compared with.

    Args:
        config: the constants.
        problem: what a repetition trains on.
        repetition: its number.
        minimum: θ, (D,).
        targets: (loss, arm, run of that arm, end of the metric's name); what is measured stands beside the arm's.
        checkpoint: unused; at most some minutes are lost.
    """
    made = problem(config, repetition)
    theta = minimum = minimum.to(config.device)
    label = _Label(repetition, "gd", 0)
    rows: list[dict[str, Any]] = []
    taken, reached = 0, True
    for loss in sorted({loss for loss, *_ in targets}, reverse=True):
        if reached:
            found = quench(made.risk, theta, level=loss, lr=config.lr, steps=config.quench_steps - taken)
            theta, taken, reached = found.theta, taken + found.steps, found.reached
        figures = {"reached": float(reached)}
        if reached:
            figures |= figures_at(config, made, theta, repetition) | {"barrier": barrier(made.risk, minimum, theta)}
            rows += label.rows("escape", taken, figures)
        for aim, name, noise, suffix in targets:
            if aim == loss:
                beside = {f"gd_{key}{suffix}": value for key, value in figures.items()}
                rows += _Label(repetition, name, noise).rows("matched", config.steps, beside)
    return Outcome(rows, {"theta": theta})


class _Matched:
    """A run's iterates at the levels of the loss, from the highest down: quenched to it where they are above."""

    def __init__(self, config: MatchedLossConfig, made: Problem, minimum: Tensor, label: _Label) -> None:
        self.config, self.made, self.minimum, self.label = config, made, minimum, label
        self.thetas: dict[str, Tensor] = {}
        """Those compared, by the end of their metrics' names."""
        self._floor = float(made.risk.loss(minimum))
        self._from: Tensor | None = None
        self._found: Quenched

    def at(self, level: float, theta: Tensor, taken: int) -> list[dict[str, Any]]:
        """The iterate at a share of the minimum's loss.

        Args:
            level: the share.
            theta: where the noise left off, (D,); the same one as at the level above is quenched on from there.
            taken: the steps until then.
        """
        config, made = self.config, self.made
        suffix = level_suffix(level, config.levels)
        figures: dict[str, float] = {"reached": 0.0, "quench_steps": 0.0, "taken": float(taken)}
        if can_be_quenched(made.risk, theta):
            found = self._quench(theta, level * self._floor)
            figures |= {"reached": float(found.reached), "quench_steps": float(found.steps)}
            figures |= {"barrier": barrier(made.risk, self.minimum, found.theta)}
            figures |= {"distance": float((found.theta - self.minimum).norm())}
            if found.reached:
                self.thetas[f"matched{suffix}"] = found.theta
                figures |= figures_at(config, made, found.theta, self.label.seed)
        rows = {f"{key}{suffix}": value for key, value in figures.items()}
        return self.label.rows("matched", config.steps, rows)

    def _quench(self, theta: Tensor, aim: float) -> Quenched:
        if theta is not self._from:
            self._from, self._found = theta, Quenched(theta, math.nan, 0, reached=True)
        before = self._found
        if before.reached:
            steps = self.config.quench_steps - before.steps
            found = quench(self.made.risk, before.theta, level=aim, lr=self.config.lr, steps=steps)
            self._found = replace(found, steps=before.steps + found.steps)
        return self._found


def figures_at(
    config: MatchedLossConfig | TrainingConfig, made: Problem, theta: Tensor, repetition: int
) -> dict[str, float]:
    """What is compared of an iterate; the same perturbations in every arm of a repetition."""
    found = expected_sharpness(
        made.risk,
        theta,
        delta=config.sharpness_delta,
        draws=config.sharpness_draws,
        seed=derived_seed(config.seed, repetition, 3),
    ).signed
    scaled = layer_relative_sharpness(
        made.risk, theta, draws=config.sharpness_draws, seed=derived_seed(config.seed, repetition, 3)
    ).signed
    return {
        "loss": float(made.risk.loss(theta)),
        "sharpness": found.value,
        "sharpness_stderr": found.stderr,
        "relative_sharpness": scaled.value,
        "parameter_norm": float(theta.norm()),
        "largest_eigenvalue": float(leading_hessian_pairs(made.risk, theta, 1)[0][0]),
        "train_accuracy": float(made.risk.accuracy(theta)),
        "test_accuracy": float(made.test.accuracy(theta)),
        "test_loss": float(made.test.loss(theta)),
    }


def batch_eigenvalue(config: MatchedLossConfig, made: Problem, theta: Tensor, repetition: int) -> float:
    """The median of λ₁(∇²L_B) over random batches: where η times it exceeds 2, most steps of SGD are unstable ones.

    A minimum that is stable for gradient descent, ηλ₁(∇²L) < 2, need not be for SGD.
    """
    draw = torch.Generator().manual_seed(derived_seed(config.seed, repetition, 4))
    found = []
    for _ in range(BATCHES):
        chosen = torch.randint(made.risk.sample_count, (config.batch_size,), generator=draw).to(theta.device)
        found.append(float(leading_hessian_pairs(restricted(made.risk, chosen), theta, 1)[0][0]))
    return median(found)


def _dynamics(config: MatchedLossConfig, name: str) -> Dynamics:
    kind = "sgd" if name in CONTROLS else name
    return dynamics_by_name(kind, **config.of_dynamics(name))


def _any_yoked(config: MatchedLossConfig) -> bool:
    return any(name in YOKED for name in config.dynamics)


def _traced(config: MatchedLossConfig) -> list[int]:
    """The steps at which TrΣ_B of SGD is computed; between them it is interpolated. At first it changes fastest."""
    return sorted({*range(0, min(100, config.steps), 2), *range(0, config.steps, 2 * LOSS_EVERY)})


def _trace_of(config: MatchedLossConfig) -> recorders.Recorder:
    def trace(risk: EmpiricalRisk, theta: Tensor) -> float:
        return float(risk.noise_covariance(theta, config.batch_size).trace())

    return trace


def _curves(made: Problem) -> dict[str, recorders.Recorder]:
    """What is recorded of every run for its learning curve."""
    often = range(0, 100_000, ACCURACY_EVERY)
    return {
        "loss": recorders.loss,
        "test_accuracy": recorders.at_steps(recorders.on(made.test, recorders.accuracy), often),
        "train_accuracy": recorders.at_steps(recorders.accuracy, often),
    }


@dataclass(frozen=True)
class _Label:
    """Which run a row is of."""

    seed: int
    dynamics: str
    noise: int

    def rows(self, phase: str, step: int, figures: Mapping[str, float]) -> list[dict[str, Any]]:
        """A row for each figure."""
        return rows_at(step, figures, phase=phase, seed=self.seed, dynamics=self.dynamics, replica=self.noise)

    def curve(self, run: Trajectory, before: int) -> list[dict[str, Any]]:
        """The records of a run that began after ``before`` steps."""
        return [
            {**row, "dynamics": self.dynamics, "replica": self.noise, "step": row["step"] + before}
            for row in run.rows(phase="escape", seed=self.seed)
            if row["step"] > 0 or before == 0
        ]


# ---------------------------------------------------------------------- what came of it


def summarise(
    config: MatchedLossConfig, rows: Sequence[Mapping[str, Any]], splits: Sequence[ImageSplit]
) -> dict[str, Any]:
    """The minima, and what each arm differs from gradient descent in at the same loss, over seeds."""
    curves, constants = Curves(rows, config.seeds, COLUMNS), asdict(config)
    minimum = [
        {row["metric"]: row["value"] for row in rows if row["phase"] == "minimum" and row["seed"] == r}
        for r in range(config.seeds)
    ]
    suffixes = [level_suffix(level, config.levels) for level in config.levels]
    return {
        "seeds": config.seeds,
        "noise_seeds": config.noise_seeds,
        "data": splits[0].facts,
        "minimum": minimum,
        "compared": {
            f"{name}{suffix}": _compared(ends(curves, constants, name, suffix))
            for name in config.dynamics
            if name != "gd"
            for suffix in suffixes
        },
    }


def _compared(found: Sequence[Sequence[End]]) -> dict[str, Any]:
    """Means over seeds of the runs that came to be compared; of the barrier, which needs no comparison, of all."""
    figures: dict[str, Callable[[End], float]] = {
        "log_sharpness_ratio": of_reached(lambda end: end.log_sharpness),
        "log_eigenvalue_ratio": of_reached(lambda end: end.log_eigenvalue),
        "log_relative_sharpness_ratio": of_reached(lambda end: end.log_relative_sharpness),
        "log_norm_ratio": of_reached(lambda end: end.log_norm),
        "accuracy_gain": of_reached(lambda end: end.accuracy_gain),
        "barrier": lambda end: end.barrier,
        "loss": of_reached(lambda end: end.found["loss"]),
        "sharpness": of_reached(lambda end: end.found["sharpness"]),
        "test_accuracy": of_reached(lambda end: end.found["test_accuracy"]),
        "quench_steps": lambda end: end.found["quench_steps"],
    }
    runs = [end for own in found for end in own]
    return {
        **{name: mean_over(seed_means(found, statistic)).to_dict() for name, statistic in figures.items()},
        "runs": len(runs),
        "censored": sum(end.censored for end in runs),
    }
