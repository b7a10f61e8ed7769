"""The two-dimensional toy: which noise carries a point from a sharp basin to a flat one?

θ starts in the sharp minimum (1, 1). Every dynamics injects the same update trace a step; only the shape of
the noise differs. Two controls keep the reading honest: an isotropic basin, where the indicator is the same
for every shape, and a basin turned by 90° against its data, where the steep direction no longer points at
the flat basin.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.dynamics import (
    GD,
    Dynamics,
    GLDConstant,
    GLDDiagonal,
    GLDHessian,
    GLDLeading,
    GLDTopEigenvector,
    MatchedTrace,
)
from noisescape.errors import InvalidValueError
from noisescape.experiments.statistics import derived_seed, mean_over, wilson
from noisescape.linops import LowRankOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.closed_form import SampleLoss
from noisescape.risk.passes import dense_hessian
from noisescape.risk.samples import Batch
from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome, Task, default_jobs, finish, perform
from noisescape.simulation.loop import simulate
from noisescape.theory.landscapes import GEOMETRIES, SHARP_MINIMUM, Geometry, toy_2d, toy_points

Preset = Literal["corrected", "as-published"]
BLOCK = 1000
TRACKED = 6
FRAMES = 100


@dataclass(frozen=True)
class Toy2DConfig:
    """Constants of the run; the defaults are the published ones.

    Attributes:
        preset: ``"corrected"``, or ``"as-published"``: covariances of running sums of gradients, as the
            published code computes them by not clearing gradients between samples.
        replicas: independent data sets and noises for each dynamics.
        control_replicas: the same for each of the two controls; 0 leaves them out.
        points: N, data points of a replica.
        lr: η.
        steps: how many.
        update_trace: η²TrΣ, the trace of the noise added to the weights at each step.
        escaped_below: success is both coordinates below this at the end.
        seed: of everything.
        device: where.
    """

    preset: Preset = "corrected"
    replicas: int = 1000
    control_replicas: int = 500
    points: int = 100
    lr: float = 0.005
    steps: int = 500
    update_trace: float = 0.01
    escaped_below: float = -0.5
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.preset not in ("corrected", "as-published"):
            raise InvalidValueError(f"unknown preset '{self.preset}'; known: corrected, as-published")
        for name, least in (("replicas", 1), ("control_replicas", 0), ("points", 2), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not (self.lr > 0 and self.update_trace >= 0):
            raise InvalidValueError(
                f"lr must be positive and update_trace not negative: {self.lr}, {self.update_trace}"
            )

    @property
    def gradient_trace(self) -> float:
        """TrΣ of the gradient noise: update_trace/η²."""
        return self.update_trace / self.lr**2


def toy_dynamics(gradient_trace: float) -> dict[str, Dynamics]:
    """The six compared dynamics, every noise at the same trace and recomputed on every step.

    Leading noise has rank 1 (rank 2 is the whole covariance in two dimensions); Hessian noise has rank 2.
    """
    shapes = (
        GLDConstant(1.0),
        GLDDiagonal(1),
        GLDLeading(1, k=1, refresh=1),
        GLDHessian(1, k=2, refresh=1),
        GLDTopEigenvector(1, refresh=1),
    )
    return {"gd": GD(), **{shape.name: MatchedTrace(shape, gradient_trace) for shape in shapes}}


class RunningSums(SampleLoss):
    """Per-sample gradients that scatter as their running sums over the samples: the published code's fault.

    Only the covariance is faulty there, so the running sums are moved to have the mean of the gradients, ∇L.
    """

    whole = True

    @override
    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        rows = super().gradients(theta, batch)
        sums = rows.cumsum(-2)
        return sums - sums.mean(-2, keepdim=True) + rows.mean(-2, keepdim=True)


def run_toy_2d(
    config: Toy2DConfig, out: Path, *, jobs: int | None = None, resume: bool = False, progress: bool = True
) -> Run:
    """Run every dynamics in every geometry and write the run directory.

    Returns:
        The run, complete: metrics, checkpoint of the tracked trajectories, summary.
    """
    run = Run.begin(out, experiment="toy-2d", config=asdict(config), seed=config.seed, resume=resume)
    if run.complete:
        return run
    started = time.perf_counter()
    tasks = [
        Task(
            f"{geometry}-{name}-{block}",
            _simulate_block,
            (config, geometry, name, block, min(BLOCK, replicas - block * BLOCK)),
        )
        for geometry in GEOMETRIES
        for replicas in [config.replicas if geometry == "published" else config.control_replicas]
        for name in toy_dynamics(config.gradient_trace)
        for block in range(-(-replicas // BLOCK))
    ]
    outcomes = perform(
        run,
        tasks,
        jobs=jobs or default_jobs(config.device),
        title="toy-2d",
        progress=progress,
        device=config.device,
    )
    rows = [row for outcome in outcomes for row in outcome.rows]
    paths = {key: path for outcome in outcomes for key, path in outcome.tensors.items()}
    run.write_tensors("trajectories", paths)
    return finish(run, rows, _summary(config, rows), started)


def _simulate_block(
    config: Toy2DConfig, geometry: Geometry, name: str, block: int, replicas: int, *, checkpoint: Path
) -> Outcome:
    # every dynamics and geometry meets the same data sets, with noise of its own
    data_seed = derived_seed(config.seed, 0, block)
    generator = torch.Generator(config.device).manual_seed(data_seed)
    points = toy_points(replicas, config.points, generator, torch.float32)
    kind = RunningSums if config.preset == "as-published" else SampleLoss
    risk = toy_2d(points, geometry, kind=kind)
    all_dynamics = toy_dynamics(config.gradient_trace)
    dynamics = all_dynamics[name]
    start = torch.tensor(SHARP_MINIMUM, device=points.device).expand(replicas, 2)
    every = max(1, config.steps // FRAMES)
    trajectory = simulate(
        risk,
        dynamics,
        start,
        lr=config.lr,
        steps=config.steps,
        record={"w1": lambda _, w: w[:, 0], "w2": lambda _, w: w[:, 1]},
        every=every,
        seed=derived_seed(config.seed, 1, list(all_dynamics).index(name), list(GEOMETRIES).index(geometry), block),
        checkpoint=checkpoint,
        progress=False,
    )
    path = torch.stack([trajectory.records["w1"].values, trajectory.records["w2"].values], dim=-1)
    inside = (path < config.escaped_below).all(-1)
    steps = trajectory.records["w1"].steps
    indicator = _indicator(risk, dynamics, start)
    final = trajectory.theta.cpu()
    rows = [
        {
            "geometry": geometry,
            "dynamics": name,
            "replica": block * BLOCK + replica,
            "escaped": bool((final[replica] < config.escaped_below).all()),
            "first_escaped_step": int(steps[inside[:, replica]][0]) if bool(inside[:, replica].any()) else None,
            "diverged": bool(trajectory.diverged[replica]),
            "trace_h_sigma": float(indicator[replica]),
            "w1": float(final[replica, 0]),
            "w2": float(final[replica, 1]),
        }
        for replica in range(replicas)
    ]
    paths = {f"{geometry}/{name}": path[:, :TRACKED].float().contiguous()} if block == 0 else {}
    return Outcome(rows, paths)


def _indicator(risk: EmpiricalRisk, dynamics: Dynamics, start: Tensor) -> Tensor:
    """Tr(HΣ) of the injected gradient noise at the start, for every replica."""
    hessian = dense_hessian(risk, start)
    covariance = dynamics.covariance(risk, start)
    if isinstance(covariance, LowRankOperator):
        return ((hessian @ covariance.factor) * covariance.factor).sum((-2, -1))
    return (hessian.diagonal(dim1=-2, dim2=-1) * covariance.diagonal()).sum(-1)


def _summary(config: Toy2DConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    geometries: dict[str, Any] = {}
    for geometry in GEOMETRIES:
        success, indicator = {}, {}
        for name in toy_dynamics(config.gradient_trace):
            mine = [row for row in rows if row["geometry"] == geometry and row["dynamics"] == name]
            if mine:
                success[name] = asdict(wilson(sum(row["escaped"] for row in mine), len(mine)))
                indicator[name] = mean_over([row["trace_h_sigma"] for row in mine]).to_dict()
        if success:
            geometries[geometry] = {"success": success, "trace_h_sigma": indicator}
    return {
        "experiment": "toy-2d",
        "preset": config.preset,
        "seed": config.seed,
        "replicas": config.replicas,
        "gradient_noise_trace": config.gradient_trace,
        **geometries["published"],
        "controls": {name: found for name, found in geometries.items() if name != "published"},
    }
