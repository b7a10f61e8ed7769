"""An experiment at work on its run, from the first file to the last."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import torch

from noisescape.experiments.protocols.session import Session, rows_of
from noisescape.runs.local_engine import Local
from noisescape.runs.tasks import Outcome, Task
from run_files import files


@dataclasses.dataclass(frozen=True)
class Powers:
    preset: str = "quick"
    seed: int = 0
    device: str = "cpu"
    experiment: ClassVar[str] = "powers"


def outcome_of(value: float, *, checkpoint: Path) -> Outcome:
    return Outcome([{"value": value}], {"b": torch.tensor([value])})


def test_the_end_of_a_run_counts_every_tasks_time(tmp_path: Path) -> None:
    session = Session.begin(Powers(), tmp_path / "run", engine=Local(1), resume=False, progress=False)
    rows = rows_of(session.perform([Task(str(value), outcome_of, (value,)) for value in (1.0, 2.0)]))
    assert not session.run.complete
    run = session.finish(rows, {"found": math.inf})
    assert run.complete
    assert run.summary() == {"experiment": "powers", "preset": "quick", "seed": 0, "found": None}
    assert run.metrics()["value"].to_pylist() == [1.0, 2.0]
    assert 0 < run.timing()["task_seconds"] < run.timing()["seconds"]
    assert files(run.path) == {"run.json", "metrics.parquet", "summary.json", "timing.json"}
