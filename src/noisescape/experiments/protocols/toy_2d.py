"""The two-dimensional toy: which noise carries a point from a sharp basin to a flat one?

θ starts in the sharp minimum (1, 1). Every dynamics injects the same update trace a step; only the shape of
the noise differs. Two controls keep the reading honest: an isotropic basin, where the indicator is the same
for every shape, and a basin turned by 90° against its data, where the steep direction no longer points at
the flat basin.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.experiments.statistics import derived_seed, mean_over, wilson
from noisescape.experiments.toy_2d import Toy2DConfig
from noisescape.linops import LowRankOperator
from noisescape.risk import EmpiricalRisk
from noisescape.risk.closed_form import SampleLoss
from noisescape.risk.passes import dense_hessian
from noisescape.risk.samples import Batch
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task
from noisescape.simulation.loop import simulate
from noisescape.theory.landscapes import GEOMETRIES, SHARP_MINIMUM, Geometry, toy_2d, toy_points

BLOCK = 1000
TRACKED = 6
FRAMES = 100


def toy_dynamics(gradient_trace: float) -> dict[str, Dynamics]:
    """The compared dynamics by arm, every noise at the same trace and recomputed on every step.

    Leading and Hessian noise have rank 2, as in the published code: in two dimensions that is the whole matrix.
    Leading noise of rank 1, along nearly the line of first-eigenvector noise, is an arm of its own beside them.
    """
    shapes = (
        GLDConstant(1.0),
        GLDDiagonal(1),
        GLDLeading(1, k=2, refresh=1),
        GLDHessian(1, k=2, refresh=1),
        GLDTopEigenvector(1, refresh=1),
    )
    arms: dict[str, Dynamics] = {shape.name: shape for shape in shapes}
    arms["gld-leading-1"] = GLDLeading(1, k=1, refresh=1)
    return {"gd": GD(), **{arm: MatchedTrace(shape, gradient_trace) for arm, shape in arms.items()}}


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


def run_toy_2d(config: Toy2DConfig, out: Path, *, engine: Engine, resume: bool, progress: bool) -> Run:
    """Run every dynamics in every geometry and write the run directory.

    Returns:
        The run, complete: metrics, checkpoint of the tracked trajectories, summary.
    """
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress)
    run = session.run
    if run.complete:
        return run
    tasks = [
        Task(
            f"{geometry}-{name}-{block}",
            simulate_block,
            (config, geometry, name, block, min(BLOCK, replicas - block * BLOCK)),
        )
        for geometry in GEOMETRIES
        for replicas in [config.replicas if geometry == "published" else config.control_replicas]
        for name in toy_dynamics(config.gradient_trace)
        for block in range(-(-replicas // BLOCK))
    ]
    outcomes = session.perform(tasks)
    rows = rows_of(outcomes)
    run.write_tensors("trajectories", {key: path for found in outcomes for key, path in found.tensors.items()})
    return session.finish(rows, _summary(config, rows))


def simulate_block(
    config: Toy2DConfig, geometry: Geometry, name: str, block: int, replicas: int, *, checkpoint: Path
) -> Outcome:
    """Up to BLOCK replicas of one dynamics in one geometry."""
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
        "replicas": config.replicas,
        "gradient_noise_trace": config.gradient_trace,
        **geometries["published"],
        "controls": {name: found for name, found in geometries.items() if name != "published"},
    }
