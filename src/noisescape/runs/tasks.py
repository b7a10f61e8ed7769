"""An experiment as independent tasks, each kept as soon as it is done, wherever an engine does it.

A finished task is one file in the run's ``tasks`` directory, an unfinished one may have a checkpoint beside
it. A run that was killed therefore goes on from what is there, and ends in the same numbers: on the same engine or
another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from noisescape.runs.progress import steps_bar
from noisescape.runs.run import Run
from noisescape.runs.storage import read_bundle, write_bundle


@dataclass(frozen=True)
class Outcome:
    """What a task leaves behind.

    Attributes:
        rows: of the run's table of metrics, in plain Python numbers and text.
        tensors: by name.
        notes: in JSON's own types.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """``function(*arguments, checkpoint=path)`` gives the outcome kept under ``key``.

    ``checkpoint`` is a file that the function may keep unfinished work in, for :func:`~noisescape.simulation.loop`.
    """

    key: str
    function: Callable[..., Outcome]
    arguments: tuple[Any, ...]


class Engine(Protocol):
    """Where tasks are done."""

    def check(self, device: str) -> None:
        """Refuse, before a run is begun, what will not do: no cluster at the address, none with such a device."""

    def perform(self, folder: Path, tasks: Sequence[Task], device: str) -> Iterator[None]:
        """Do the tasks, in any order, and keep each in the folder; an item comes whenever one is there."""


def perform(
    run: Run, tasks: Sequence[Task], *, engine: Engine, title: str, progress: bool, device: str = "cpu"
) -> list[Outcome]:
    """The outcomes in the order of the tasks; those already in the run's directory are not done again.

    Tasks whose ``device`` is the CPU run on one thread each wherever they run and whatever else the machine
    has, so that results do not depend on it.

    Raises:
        CorruptFileError: a finished task's file is damaged.
        RuntimeError: a worker process was killed.
    """
    folder = run.path / "tasks"
    folder.mkdir(exist_ok=True)
    present = {task.key: _read(file) for task in tasks if (file := file_of(folder, task)).exists()}
    missing = [task for task in tasks if task.key not in present]
    with steps_bar(title, len(tasks), shown=progress) as advance:
        advance(len(tasks) - len(missing))
        for _ in engine.perform(folder, missing, device):
            advance(1)
    # what is on disk is what counts, whether it was done now or before
    present |= {task.key: _read(file_of(folder, task)) for task in missing}
    return [present[task.key] for task in tasks]


def perform_one(folder: Path, task: Task, device: str) -> None:
    """Do a task, and keep its outcome in the folder."""
    started = time.perf_counter()
    with _one_thread(device):
        outcome = task.function(*task.arguments, checkpoint=folder / f"{task.key}.partial.safetensors")
    seconds = time.perf_counter() - started
    notes = {"rows": outcome.rows, "notes": dict(outcome.notes), "order": list(outcome.tensors), "seconds": seconds}
    write_bundle(file_of(folder, task), outcome.tensors, notes)


def file_of(folder: Path, task: Task) -> Path:
    """Where a task's outcome is kept."""
    return folder / f"{task.key}.done.safetensors"


def on_cpu(device: str) -> bool:
    """Whether a device is the CPU."""
    return torch.device(device).type == "cpu"


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """One thread for work on the CPU: sums and eigenvectors round otherwise on two."""
    if not on_cpu(device):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):  # SciPy's eigensolvers have threads of their own
            yield
    finally:
        torch.set_num_threads(before)


def _read(path: Path) -> Outcome:
    bundle = read_bundle(path)
    return Outcome(
        bundle.notes["rows"], {name: bundle.tensors[name] for name in bundle.notes["order"]}, bundle.notes["notes"]
    )
