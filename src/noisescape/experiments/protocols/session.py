"""What every experiment does alike: open its run, perform its tasks, close the run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome, Task, default_jobs, finish, perform


@dataclass(frozen=True)
class Session:
    """One experiment at work on its run.

    Attributes:
        run: its directory.
        config: its constants.
        jobs: processes.
        progress: whether a terminal shows a bar.
        started: when, by ``perf_counter``.
    """

    run: Run
    config: Any
    jobs: int
    progress: bool
    started: float

    @classmethod
    def begin(
        cls,
        config: Any,
        out: Path,
        *,
        jobs: int | None,
        resume: bool,
        progress: bool,
        data: Mapping[str, Any] | None = None,
    ) -> Session:
        """On a new run, or on the one begun at ``out`` if it is to be resumed; see `Run.begin`."""
        run = Run.begin(
            out,
            experiment=config.experiment,
            config=asdict(config),
            seed=config.seed,
            data=data,
            resume=resume,
        )
        return cls(run, config, jobs or default_jobs(config.device), progress, time.perf_counter())

    def perform(self, tasks: Sequence[Task], what: str = "") -> list[Outcome]:
        """The outcomes in the order of the tasks; ``what`` they are, for the progress bar."""
        return perform(
            self.run,
            tasks,
            jobs=self.jobs,
            title=": ".join(filter(None, (self.config.experiment, what))),
            progress=self.progress,
            device=self.config.device,
        )

    def finish(self, rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]) -> Run:
        """The run, complete; its summary begins with what was run."""
        what = {name: getattr(self.config, name) for name in ("experiment", "preset", "seed")}
        return finish(self.run, rows, {**what, **summary}, self.started)


def rows_of(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The rows of all outcomes, one after the other."""
    return [row for outcome in outcomes for row in outcome.rows]
