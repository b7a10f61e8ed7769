"""What the escape and the training protocol share: dynamics followed from one point, on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from noisescape.dynamics import Dynamics, GLDConstant, MatchedTrace, dynamics_by_name
from noisescape.errors import FailedError
from noisescape.experiments.constants import NOISELESS, ComparisonConfig
from noisescape.experiments.curves import Curves
from noisescape.experiments.data import ImageSplit
from noisescape.experiments.problem import MakeProblem, Problem
from noisescape.experiments.published import published_dynamics
from noisescape.experiments.statistics import derived_seed, mean_over, measured_every
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import unchecked_losses
from noisescape.runs.tasks import Outcome
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.simulation.records import Record, Trajectory

LOOK_EVERY = 25
"""Steps between two looks at the loss of a run that ends at a loss. A look at N images costs as much as 0.0027·N
steps of SGD with B = 100 (decision 22): at 5,000 images, half of what the steps between two looks do."""


def make_dynamics(config: ComparisonConfig, name: str, trace: float) -> Dynamics:
    """The dynamics called ``name`` with a run's constants; ``trace`` is TrΣ_B where it starts."""
    constants = config.of_dynamics(name)
    if config.preset == "as-published":
        return published_dynamics(name, **constants)
    made = dynamics_by_name(name, **constants)
    return MatchedTrace(made, trace) if isinstance(made, GLDConstant) and config.rho is None else made


def checked_splits(
    config: Comparison, problem: MakeProblem, make: Callable[[Problem, str], Dynamics]
) -> list[ImageSplit]:
    """Every repetition's images, once they, the network and the constants are known to fit one another.

    Args:
        config: of the run.
        problem: what a repetition trains on.
        make: (the first repetition's problem, name) ↦ the dynamics.
    """
    problems = [problem(config, repetition) for repetition in range(config.seeds)]
    for name in config.dynamics:
        make(problems[0], name).check(problems[0].risk)
    return [made.split for made in problems]


def refuse_divergence(descent: Trajectory, repetition: int, lr: float) -> None:
    """Refuse a gradient descent that ended nowhere, where its end is to be left.

    Raises:
        RuntimeError: the message has the step and the mend.
    """
    if bool(descent.diverged):
        raise FailedError(
            f"gradient descent diverged at step {int(descent.diverged_at)} of repetition {repetition}; there is "
            f"no minimum to leave. Lower gd_lr (now {lr:g})"
        )


def can_be_quenched(risk: EmpiricalRisk, theta: Tensor) -> bool:
    """Whether there is a loss to bring down: what diverged has none."""
    return bool(theta.isfinite().all()) and bool(unchecked_losses(risk, theta).isfinite().all())


def follow(
    config: ComparisonConfig,
    problem: Problem,
    name: str,
    start: Tensor,
    trace: Callable[[Tensor], float],
    *,
    phase: str,
    repetition: int,
    sharpness_at: Iterable[int],
    checkpoint: Path,
    until: Callable[[Mapping[str, Record]], bool] | None = None,
) -> Outcome:
    """One dynamics from one point, with what is compared of it.

    Args:
        config: of the run.
        problem: the repetition's.
        name: of the dynamics.
        start: θ, (D,).
        trace: θ ↦ TrΣ_B, what the trace of the injected noise should be.
        phase: what the rows call it.
        repetition: its number.
        sharpness_at: the steps at which the expected sharpness is measured.
        checkpoint: of unfinished work.
        until: it ends before its steps are taken where this is true of the records, the loss among them at every
            :data:`LOOK_EVERY`-th step.
    """
    dynamics = make_dynamics(config, name, trace(start))

    def target(_risk: EmpiricalRisk, theta: Tensor) -> float:
        return dynamics.trace_target if isinstance(dynamics, MatchedTrace) else trace(theta)

    watch = measured_every(config.steps)
    every = max(1, config.steps // 25)
    curves: dict[str, recorders.Recorder] = {
        "loss": recorders.loss,
        "train_accuracy": recorders.accuracy,
        "test_accuracy": recorders.on(problem.test, recorders.accuracy),
    }
    if until is not None:
        seldom = range(0, config.steps + 1, every)
        for metric in ("train_accuracy", "test_accuracy"):
            curves[metric] = recorders.at_steps(curves[metric], seldom)
        every = LOOK_EVERY
    if measured := {*sharpness_at}:
        sharpness = recorders.sharpness(config.sharpness_delta, draws=config.sharpness_draws)
        curves["sharpness"] = recorders.at_steps(sharpness, measured)
    trajectory = simulate(
        problem.risk,
        dynamics,
        start,
        lr=config.rate(name),
        steps=config.steps,
        record={
            **curves,
            # at the same steps as the injected noise, so that the two can be compared
            "trace_target": recorders.at_steps(target, range(0, config.steps, watch)),
        },
        every=every,
        seed=derived_seed(config.seed, repetition, 2),
        noise_every=None if name in NOISELESS else watch,
        checkpoint=checkpoint,
        progress=False,
        until=until,
    )
    rows = list(trajectory.rows(phase=phase, seed=repetition))
    if until is not None and not bool(trajectory.diverged):
        # where the run ended there was no further noise to have a target
        rows = [row for row in rows if (row["metric"], row["step"]) != ("trace_target", trajectory.taken)]
    return Outcome(rows, {"theta": trajectory.theta})


class Comparison(Protocol):
    """The constants that a comparison's summary needs."""

    @property
    def seeds(self) -> int:
        """Independent repetitions."""

    @property
    def steps(self) -> int:
        """Of every dynamics."""

    @property
    def dynamics(self) -> tuple[str, ...]:
        """Names of the compared ones."""


class Compared:
    """What was recorded of the dynamics in one phase, for the summary."""

    def __init__(self, config: Comparison, rows: Iterable[Mapping[str, Any]], phase: str) -> None:
        self.config = config
        self.phase = phase
        self.curves = Curves(rows, config.seeds)

    def final(self, metrics: Sequence[str]) -> dict[str, Any]:
        """These metrics of every dynamics at the last step, over seeds."""
        last = self.config.steps
        return {
            name: {m: mean_over(self.curves.at(last, self.phase, name, m)).to_dict() for m in metrics}
            for name in self.config.dynamics
        }

    def traces(self) -> dict[str, Any]:
        """The trace that each noise had and the one it should have had, means along the trajectories."""
        return {
            key: {name: mean_over(self._means(name, metric)).to_dict() for name in self.config.dynamics}
            for key, metric in (("injected_trace", "injected"), ("target_trace", "trace_target"))
        }

    def _means(self, name: str, metric: str) -> list[float]:
        """Mean along the trajectory, for every seed; 0 where nothing was recorded."""
        found = (curve.values() for curve in self.curves.of(self.phase, name, metric))
        return [sum(own) / len(own) if own else 0.0 for own in found]
