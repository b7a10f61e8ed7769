"""What every experiment does alike: open its run, perform its tasks, close the run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noisescape.runs.run import Run, tidy
from noisescape.runs.storage import read_bundle
from noisescape.runs.tasks import Engine, Outcome, Task, perform


@dataclass(frozen=True)
class Session:
    """One experiment at work on its run.

    Attributes:
        run: its directory.
        config: its constants.
        engine: where its tasks are done.
        progress: whether a terminal shows a bar.
        started: when, by ``perf_counter``.
    """

    run: Run
    config: Any
    engine: Engine
    progress: bool
    started: float

    @classmethod
    def begin(
        cls,
        config: Any,
        out: Path,
        *,
        engine: Engine,
        resume: bool,
        progress: bool,
        data: Mapping[str, Any] | None = None,
    ) -> Session:
        """On a new run, or on the one begun at ``out`` if it is to be resumed; see `Run.create`."""
        engine.check(config.device)
        constants: dict[str, Any] = {"config": asdict(config), "seed": config.seed, "data": data}
        run = Run.create(out, experiment=config.experiment, resume=resume, **constants)
        return cls(run, config, engine, progress, time.perf_counter())

    def perform(self, tasks: Sequence[Task], what: str = "") -> list[Outcome]:
        """The outcomes in the order of the tasks; ``what`` they are, for the progress bar."""
        return perform(
            self.run,
            tasks,
            engine=self.engine,
            title=": ".join(filter(None, (self.config.experiment, what))),
            progress=self.progress,
            device=self.config.device,
        )

    def finish(self, rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]) -> Run:
        """The run, complete: its table, timing and summary are written, its tasks' files gone."""
        what = {name: getattr(self.config, name) for name in ("experiment", "preset", "seed")}
        folder = self.run.path / "tasks"
        spent = sum(read_bundle(path).notes["seconds"] for path in folder.glob("[!.]*.done.safetensors"))
        self.run.write_metrics(tidy(rows))
        self.run.write_timing({"seconds": time.perf_counter() - self.started, "task_seconds": spent})
        self.run.write_summary({**what, **summary})
        shutil.rmtree(folder)
        return self.run


def rows_at(
    step: int, figures: Mapping[str, float], *, phase: str, seed: int, dynamics: str, replica: int = 0
) -> list[dict[str, Any]]:
    """A row of the run's table for each figure of one iterate."""
    common = {"phase": phase, "seed": seed, "dynamics": dynamics, "replica": replica, "step": step}
    return [{**common, "metric": metric, "value": value} for metric, value in figures.items()]


def rows_of(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The rows of all outcomes, one after the other."""
    return [row for outcome in outcomes for row in outcome.rows]
