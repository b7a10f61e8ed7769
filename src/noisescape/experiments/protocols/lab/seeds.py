"""What the laws' experiments do alike: a task for each seed, rows by case and metric, means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from noisescape.experiments.curves import Curves
from noisescape.experiments.lab.law import LawConfig, NetworkConfig
from noisescape.experiments.problem import Problem, data_identity, small_images
from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.experiments.statistics import mean_over
from noisescape.runs.run import Run
from noisescape.runs.tasks import Engine, Outcome, Task


def perform_seeds(
    config: LawConfig,
    measure: Callable[..., Outcome],
    out: Path,
    *,
    engine: Engine,
    resume: bool,
    progress: bool,
) -> Run:
    """``measure(config, repetition, checkpoint=…)`` for every seed, and the run directory.

    Returns:
        The run, complete: metrics and summary.
    """
    data = None
    if isinstance(config, NetworkConfig):  # before anything is written
        data = data_identity([small_images(config, repetition).split for repetition in range(config.seeds)])
    session = Session.begin(config, out, engine=engine, resume=resume, progress=progress, data=data)
    if session.run.complete:
        return session.run
    tasks = [Task(f"seed-{repetition}", measure, (config, repetition)) for repetition in range(config.seeds)]
    rows = rows_of(session.perform(tasks))
    return session.finish(rows, summarise(rows, config.seeds))


def figures(seed: int, case: str, found: Mapping[str, float], step: int = 0) -> list[dict[str, Any]]:
    """A row for each figure of one case."""
    common = {"seed": seed, "case": case, "step": step}
    return [{**common, "metric": metric, "value": float(value)} for metric, value in found.items()]


def curve(seed: int, case: str, metric: str, points: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """A row for each step of one curve."""
    return [row for step, value in points for row in figures(seed, case, {metric: value}, step)]


def summarise(rows: Sequence[Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    """The mean over seeds of every figure's last value, by case and metric."""
    curves = Curves(rows, seeds, by=("case", "metric"))
    cases: dict[str, dict[str, Any]] = {}
    for case, metric in dict.fromkeys((row["case"], row["metric"]) for row in rows):
        ends = [values[max(values)] for values in curves.of(case, metric) if values]
        cases.setdefault(case, {})[metric] = mean_over(ends).to_dict()
    return {"seeds": seeds, "cases": cases}


def minimum(config: NetworkConfig, made: Problem) -> Tensor:
    """Where gradient descent from the initialisation comes to rest, its rate falling to 0 at the end."""
    theta = made.risk.parameters()
    for step in range(config.gd_steps):
        theta = theta - config.gd_rate(step) * made.risk.gradient(theta)
    made.risk.loss(theta)  # refuses what is not finite
    return theta
