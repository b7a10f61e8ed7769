"""Training under every arm of the noise-knob experiment, from the same parameters at the same learning rates.

What is asked: does a large batch with the noise of a small one generalise as the small one does, is it the size of
that noise or its directions, and is noise needed at all?
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from noisescape.dynamics import Dynamics
from noisescape.experiments.noise_knob import NoiseKnobConfig
from noisescape.experiments.problem import MakeProblem, Problem
from noisescape.experiments.protocols.comparison import checked_splits
from noisescape.experiments.protocols.knob_arms import (
    AsIfSmall,
    Isotropic,
    LargeBatch,
    MicroGradientPenalty,
    SmallBatch,
    network_losses,
)
from noisescape.experiments.protocols.training import train_from_initialisation
from noisescape.experiments.statistics import derived_seed
from noisescape.linops import eigenpairs
from noisescape.risk import EmpiricalRisk
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate

FINAL_METRICS = (
    "loss",
    "train_accuracy",
    "test_accuracy",
    "test_loss",
    "largest_eigenvalue",
    "sharpness/signed",
    "sharpness/absolute",
)


def run_noise_knob(
    config: NoiseKnobConfig, problem: MakeProblem, out: Path, *, engine: Engine, resume: bool, progress: bool
) -> Run:
    """Train under every arm for every seed and write the run directory."""
    # before anything is written
    splits = checked_splits(config, problem, lambda made, name: make_arm(config, made, name))
    return train_from_initialisation(
        config, problem, splits, train, FINAL_METRICS, out, engine=engine, resume=resume, progress=progress
    )


def train(
    config: NoiseKnobConfig, problem: MakeProblem, repetition: int, name: str, *, checkpoint: Path
) -> Outcome:
    """One arm from the initialisation."""
    made = problem(config, repetition)
    noisy = name != MicroGradientPenalty.name
    size = config.batch_size if name == LargeBatch.name else config.small_batch_size

    def target(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
        return risk.noise_covariance(theta, size).trace()

    measured = range(0, config.steps, config.measure_every)
    trajectory = simulate(
        made.risk,
        make_arm(config, made, name),
        made.risk.parameters(),
        lr=config.rate,
        steps=config.steps,
        record={
            "loss": recorders.loss,
            "train_accuracy": recorders.accuracy,
            "test_accuracy": recorders.on(made.test, recorders.accuracy),
            "test_loss": recorders.on(made.test, recorders.loss),
            "largest_eigenvalue": recorders.at_steps(_largest_eigenvalue, {config.steps}),
            "sharpness": recorders.at_steps(
                recorders.sharpness(config.sharpness_delta, draws=config.sharpness_draws), {config.steps}
            ),
            **({"trace_target": recorders.at_steps(target, measured)} if noisy else {}),
        },
        every=max(1, config.steps // 25),
        seed=derived_seed(config.seed, repetition, 2),
        noise_every=config.measure_every if noisy else None,
        checkpoint=checkpoint,
        progress=False,
    )
    return Outcome(list(trajectory.rows(phase="training", seed=repetition)), {"theta": trajectory.theta})


def make_arm(config: NoiseKnobConfig, problem: Problem, name: str) -> Dynamics:
    """The arm called ``name`` on one repetition's network and images."""
    large, small = config.batch_size, config.small_batch_size
    if name == LargeBatch.name:
        return LargeBatch(large)
    if name == SmallBatch.name:
        return SmallBatch(small)
    inputs, targets = (tensor.to(config.device) for tensor in problem.split.train)
    losses = network_losses(problem.model, inputs, targets)
    if name == MicroGradientPenalty.name:
        return MicroGradientPenalty(large, small, losses, strength=config.penalty * config.lr / 4)
    return {AsIfSmall.name: AsIfSmall, Isotropic.name: Isotropic}[name](large, small, losses)


def _largest_eigenvalue(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """λ₁ of H, for comparison with 2/η."""
    return eigenpairs(risk.hessian(theta), 1).values[0]
