"""Escape from a sharp minimum of a network: the protocol of the FashionMNIST experiment, for any images.

Gradient descent finds a sharp minimum of a network trained on images, some of them randomly labelled. From
there every dynamics runs from the same parameters, on the same data, with noise of the same trace; what each
does to training loss, test accuracy and expected sharpness is compared within seeds.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from noisescape.dynamics import (
    DYNAMICS,
    GD,
    Dynamics,
    GLDConstant,
    GLDHessian,
    GLDTopEigenvector,
    MatchedTrace,
    dynamics_by_name,
)
from noisescape.errors import FailedError, InvalidValueError
from noisescape.experiments.problem import MakeProblem, data_identity, data_tensors
from noisescape.experiments.published import published_dynamics
from noisescape.experiments.statistics import derived_seed, mean_over, measured_every
from noisescape.linops import ToleranceWarning, product_trace, spectral_density, trace
from noisescape.measurement.indicator import measure
from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian_pairs import leading_hessian_pairs
from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome, Task, default_jobs, finish, perform
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.theory import decay_exponent, projection_coefficient

FINAL_FIGURES = ("loss", "test_accuracy", "sharpness/signed", "sharpness/absolute")
TAKES_CURVATURE = (GLDHessian.name, GLDTopEigenvector.name)


@dataclass(frozen=True)
class EscapeConfig:
    """Constants of the protocol.

    Attributes:
        preset: its name; ``as-published`` keeps the deviations of the published code.
        seeds: independent repetitions: data split, random labels, initialisation and noise.
        clean: training images with their own label.
        corrupted: training images with a random label.
        gd_lr: learning rate to the minimum.
        gd_steps: gradient-descent steps to the minimum.
        landmarks: shares of ``gd_steps`` after which Tr(HΣ) and its company are measured on the way.
        lr: η of the compared dynamics.
        steps: of the compared dynamics.
        batch_size: B, with replacement.
        k: rank of leading and Hessian noise.
        rho: standard deviation of the constant noise; None: such that its trace is TrΣ_B at the minimum.
        rescale: whether leading noise is scaled up to TrΣ_B.
        refresh: steps between two computations of a noise's covariance.
        curvature_refresh: the same for the two noises that take eigenvectors of H, which cost more.
        penalty: strength s of the control GD on L + s‖∇L‖².
        sharpness_delta: δ of the expected sharpness.
        sharpness_draws: its draws.
        rtol: relative standard error of the figures at the minimum.
        rtol_along: the same on the way there.
        dynamics: names of the compared ones.
        seed: of everything.
        device: where.
    """

    preset: str
    seeds: int
    clean: int
    corrupted: int
    gd_lr: float
    gd_steps: int
    landmarks: tuple[float, ...]
    lr: float
    steps: int
    batch_size: int
    k: int
    rho: float | None
    rescale: bool
    refresh: int
    curvature_refresh: int
    penalty: float
    sharpness_delta: float
    sharpness_draws: int
    rtol: float
    rtol_along: float
    dynamics: tuple[str, ...] = tuple(DYNAMICS)
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str]

    def __post_init__(self) -> None:
        at_least_one = ("seeds", "gd_steps", "steps", "batch_size", "k", "refresh", "curvature_refresh")
        for name, least in (*((name, 1) for name in at_least_one), ("sharpness_draws", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("gd_lr", "lr", "sharpness_delta", "rtol", "rtol_along"):
            if not getattr(self, name) > 0:
                raise InvalidValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not all(0 < share <= 1 for share in self.landmarks):
            raise InvalidValueError(f"landmarks are shares of gd_steps in (0, 1], not {self.landmarks}")
        for name in self.dynamics:
            self.make(name, 1.0)

    def make(self, name: str, trace: float) -> Dynamics:
        """The dynamics called ``name`` with this run's constants; ``trace`` is TrΣ_B at the minimum."""
        constants = {
            "batch_size": self.batch_size,
            "k": self.k,
            "rho": 1.0 if self.rho is None else self.rho,
            "refresh": self.curvature_refresh if name in TAKES_CURVATURE else self.refresh,
            "rescale": self.rescale,
            "strength": self.penalty,
        }
        if self.preset == "as-published":
            return published_dynamics(name, **constants)
        made = dynamics_by_name(name, **constants)
        return MatchedTrace(made, trace) if isinstance(made, GLDConstant) and self.rho is None else made


def run_escape(
    config: EscapeConfig, problem: MakeProblem, out: Path, *, jobs: int | None, resume: bool, progress: bool
) -> Run:
    """Run the protocol for every seed and write the run directory.

    Returns:
        The run, complete: metrics, checkpoints of the minima and of every end point, summary.
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
    jobs = jobs or default_jobs(config.device)
    title = config.experiment
    repetitions = range(config.seeds)
    descents = perform(
        run,
        [Task(f"descent-{r}", _descend, (config, problem, r)) for r in repetitions],
        jobs=jobs,
        title=f"{title}: to the minimum",
        progress=progress,
        device=config.device,
    )
    minima = [descent.tensors["theta"] for descent in descents]
    # the longest first, so that no core waits for it at the end
    order = sorted(config.dynamics, key=lambda name: name not in TAKES_CURVATURE)
    escapes = {
        (r, name): Task(f"escape-{name}-{r}", _escape, (config, problem, r, minima[r], name))
        for name in order
        for r in repetitions
    }
    surveys = [Task(f"survey-{r}", _survey, (config, problem, r, minima[r])) for r in repetitions]
    tasks = [*escapes.values(), *surveys]
    outcomes = perform(run, tasks, jobs=jobs, title=f"{title}: dynamics", progress=progress, device=config.device)
    escaped = dict(zip(escapes, outcomes, strict=False))
    surveyed = outcomes[len(escapes) :]

    in_order = [escaped[r, name] for name in config.dynamics for r in repetitions]
    rows = [row for outcome in [*descents, *surveyed, *in_order] for row in outcome.rows]
    run.write_tensors("data", data_tensors(splits))
    run.write_tensors("minima", {f"seed-{r}": theta for r, theta in enumerate(minima)})
    run.write_tensors("final", {f"{name}/seed-{r}": found.tensors["theta"] for (r, name), found in escaped.items()})
    run.write_tensors(
        "spectra",
        {f"seed-{r}/{part}": tensor for r, found in enumerate(surveyed) for part, tensor in found.tensors.items()},
    )
    summary = _summary(config, rows, [dict(found.notes) for found in surveyed], dict(splits[0].facts))
    return finish(run, rows, summary, started)


def _descend(config: EscapeConfig, problem: MakeProblem, repetition: int, *, checkpoint: Path) -> Outcome:
    """Gradient descent from initialisation to the sharp minimum, with the indicator on the way."""
    made = problem(config, repetition)
    risk, test = made.risk, made.test
    landmarks = sorted({max(1, round(config.gd_steps * share)) for share in config.landmarks})

    def along(risk: EmpiricalRisk, theta: Tensor) -> dict[str, float]:
        with warnings.catch_warnings():
            # where TrH nearly cancels no tolerance is reached; the standard error is recorded and says so
            warnings.simplefilter("ignore", ToleranceWarning)
            return indicator_along(risk, theta, config)

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
            "along": recorders.at_steps(along, landmarks),
        },
        every=max(1, config.gd_steps // 50),
        checkpoint=checkpoint,
        progress=False,
    )
    if bool(trajectory.diverged):
        raise FailedError(
            f"gradient descent diverged at step {int(trajectory.diverged_at)} of repetition {repetition}; there is "
            f"no minimum to leave. Lower gd_lr (now {config.gd_lr:g})"
        )
    return Outcome(list(trajectory.rows(phase="descent", seed=repetition)), {"theta": trajectory.theta})


def indicator_along(risk: EmpiricalRisk, theta: Tensor, config: EscapeConfig) -> dict[str, float]:
    """Tr(HΣ), its isotropic reference, and what both conditions ask of: to the accuracy a curve needs."""
    covariance = risk.noise_covariance(theta, config.batch_size)
    hessian = risk.hessian(theta)
    values, vectors = leading_hessian_pairs(risk, theta, config.k + 1)
    first = vectors[:, 0]
    total = trace(hessian, rtol=config.rtol_along, deflate=vectors, max_products=100, seed=config.seed)
    control = risk.gauss_newton(theta) if risk._capabilities.gauss_newton_forms else None
    found = product_trace(
        hessian, covariance, control=control, rtol=config.rtol_along, deflate=20, max_products=100, seed=config.seed
    )
    size = float(covariance.trace())
    reference = total.scaled(size / risk.dimension)
    along_first = float(first @ (covariance @ first))
    return {
        "trace_h_sigma": found.value,
        "trace_h_sigma_stderr": found.stderr,
        "isotropic_reference": reference.value,
        "isotropic_reference_stderr": reference.stderr,
        "projection_coefficient": projection_coefficient(along_first, float(values[0]), total.value, size),
        "decay_exponent": decay_exponent(float(values[0]), float(values[-1]), risk.dimension),
        "largest_eigenvalue": float(values[0]),
    }


def _survey(
    config: EscapeConfig, problem: MakeProblem, repetition: int, minimum: Tensor, *, checkpoint: Path
) -> Outcome:
    """Everything measured at the minimum."""
    risk = problem(config, repetition).risk
    minimum = minimum.to(config.device)
    found = measure(risk, minimum, batch_size=config.batch_size, k=config.k, rtol=config.rtol, seed=config.seed)
    density = spectral_density(risk.hessian(minimum), steps=60, probes=4, seed=config.seed)
    tensors = {
        "hessian_eigenvalues": found.hessian.values,
        "noise_eigenvalues": found.noise.values,
        "density_grid": density.grid,
        "density": density.density,
        "density_stderr": density.stderr,
    }
    rows = [
        {
            "phase": "minimum",
            "seed": repetition,
            "dynamics": "gd",
            "replica": 0,
            "step": config.gd_steps,
            "metric": name,
            "value": float(estimate.value),
        }
        for name, estimate in found.estimates().items()
    ]
    return Outcome(rows, tensors, found.to_dict())


def _escape(
    config: EscapeConfig, problem: MakeProblem, repetition: int, minimum: Tensor, name: str, *, checkpoint: Path
) -> Outcome:
    """One dynamics from the minimum."""
    made = problem(config, repetition)
    risk, test = made.risk, made.test
    minimum = minimum.to(config.device)

    dynamics = config.make(name, float(risk.noise_covariance(minimum, config.batch_size).trace()))

    def target(risk: EmpiricalRisk, theta: Tensor) -> float:
        """What the trace of the injected noise should be."""
        if isinstance(dynamics, MatchedTrace):
            return dynamics.trace_target
        return float(risk.noise_covariance(theta, config.batch_size).trace())

    watch = measured_every(config.steps)
    seldom = {round(config.steps * share) for share in (0, 0.25, 0.5, 0.75, 1)}
    trajectory = simulate(
        risk,
        dynamics,
        minimum,
        lr=config.lr,
        steps=config.steps,
        record={
            "loss": recorders.loss,
            "test_accuracy": recorders.on(test, recorders.accuracy),
            "train_accuracy": recorders.accuracy,
            "sharpness": recorders.at_steps(
                recorders.sharpness(config.sharpness_delta, draws=config.sharpness_draws), seldom
            ),
            # at the same steps as the injected noise, so that the two can be compared
            "trace_target": recorders.at_steps(target, range(0, config.steps, watch)),
        },
        every=max(1, config.steps // 25),
        seed=derived_seed(config.seed, repetition, 2),
        noise_every=None if name in ("gd", "gd-gradient-penalty") else watch,
        checkpoint=checkpoint,
        progress=False,
    )
    return Outcome(list(trajectory.rows(phase="escape", seed=repetition)), {"theta": trajectory.theta})


def _summary(
    config: EscapeConfig, rows: list[dict[str, Any]], measured: list[dict[str, Any]], data: dict[str, Any]
) -> dict[str, Any]:
    found: dict[tuple[str, str, int, int], float] = {
        (row["dynamics"], row["metric"], row["step"], row["seed"]): row["value"]
        for row in rows
        if row["phase"] == "escape"
    }

    def at(name: str, metric: str, step: int) -> list[float]:
        """One value a seed, NaN for those that stopped before."""
        return [found.get((name, metric, step, seed), math.nan) for seed in range(config.seeds)]

    def change(name: str) -> list[float]:
        before, after = at(name, "sharpness/signed", 0), at(name, "sharpness/signed", config.steps)
        return [late - early for early, late in zip(before, after, strict=True)]

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
        "minimum": measured,
        "final": {
            name: {metric: mean_over(at(name, metric, config.steps)).to_dict() for metric in FINAL_FIGURES}
            for name in config.dynamics
        },
        "sharpness_change": {name: mean_over(change(name)).to_dict() for name in config.dynamics},
        "injected_trace": {name: mean_over(mean_trace(name, "injected")).to_dict() for name in config.dynamics},
        "target_trace": {name: mean_over(mean_trace(name, "trace_target")).to_dict() for name in config.dynamics},
    }
