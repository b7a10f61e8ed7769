"""An experiment as independent tasks: side by side on the machine's cores, each kept as soon as it is done.

A finished task is one file in the run's ``tasks`` directory, an unfinished one may have a checkpoint beside
it. A run that was killed therefore goes on from what is there, and ends in the same numbers.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from noisescape.errors import FailedError
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


def default_jobs(device: str) -> int:
    """One process a core; one in all on an accelerator."""
    return os.cpu_count() or 1 if _on_cpu(device) else 1


def perform(
    run: Run, tasks: Sequence[Task], *, jobs: int, title: str, progress: bool, device: str = "cpu"
) -> list[Outcome]:
    """The outcomes in the order of the tasks; those already in the run's directory are not done again.

    Tasks whose ``device`` is the CPU run on one thread each whatever ``jobs`` is and whatever else the machine
    has, so that results do not depend on it.

    Raises:
        CorruptFileError: a finished task's file is damaged.
        RuntimeError: a worker process was killed.
    """
    folder = run.path / "tasks"
    folder.mkdir(exist_ok=True)
    missing = [task for task in tasks if not _file(folder, task.key).exists()]
    calls = (delayed(_perform_one)(folder, task, device, os.getpid()) for task in missing)
    with steps_bar(title, len(tasks), shown=progress) as advance:
        advance(len(tasks) - len(missing))
        finished: Iterable[None] = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
        try:
            for _ in finished:
                advance(1)
        except BrokenProcessPool as error:
            raise FailedError(
                "a worker process was killed, perhaps by the system for want of memory; what was finished is kept: "
                f"take fewer than {jobs} --jobs and continue with --resume"
            ) from error
    # what is on disk is what counts, whether it was done now or before
    return [_read(folder, task.key) for task in tasks]


def _perform_one(folder: Path, task: Task, device: str, owner: int) -> None:
    _end_with(owner)
    started = time.perf_counter()
    with _one_thread(device):
        outcome = task.function(*task.arguments, checkpoint=folder / f"{task.key}.partial.safetensors")
    seconds = time.perf_counter() - started
    notes = {"rows": outcome.rows, "notes": dict(outcome.notes), "order": list(outcome.tensors), "seconds": seconds}
    write_bundle(_file(folder, task.key), outcome.tensors, notes)


def _on_cpu(device: str) -> bool:
    return torch.device(device).type == "cpu"


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """One thread for work on the CPU: sums and eigenvectors round otherwise on two."""
    if not _on_cpu(device):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):  # SciPy's eigensolvers have threads of their own
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _end_with(owner: int) -> None:
    """Let a worker process end when the run's process is gone: a killed run must not go on in its children."""
    if os.getpid() == owner:
        return

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read(folder: Path, key: str) -> Outcome:
    bundle = read_bundle(_file(folder, key))
    return Outcome(
        bundle.notes["rows"], {name: bundle.tensors[name] for name in bundle.notes["order"]}, bundle.notes["notes"]
    )


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.done.safetensors"
