"""Tasks side by side on this machine's cores."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed

from noisescape.errors import FailedError
from noisescape.runs.tasks import Task, on_cpu, perform_one


@dataclass(frozen=True)
class Local:
    """Worker processes of this program.

    Attributes:
        jobs: how many; None: one a core, on an accelerator one.
    """

    jobs: int | None = None

    def check(self, device: str) -> None:
        """See :class:`~noisescape.runs.tasks.Engine`: there is nothing to refuse."""

    def perform(self, folder: Path, tasks: Sequence[Task], device: str) -> Iterator[None]:
        """See :class:`~noisescape.runs.tasks.Engine`.

        Raises:
            RuntimeError: a worker process was killed.
        """
        jobs = self.jobs or default_jobs(device)
        calls = (delayed(_perform_one)(folder, task, device, os.getpid()) for task in tasks)
        finished: Iterable[None] = Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
        from torch import OutOfMemoryError  # here the tasks have loaded torch

        try:
            yield from finished
        except OutOfMemoryError as error:
            raise FailedError(
                f"the memory of {device} does not hold what {jobs} tasks take at once; what was finished is kept: "
                "take fewer --jobs and continue with --resume"
            ) from error
        except BrokenProcessPool as error:
            raise FailedError(
                "a worker process was killed, perhaps by the system for want of memory; what was finished is kept: "
                f"take fewer than {jobs} --jobs and continue with --resume"
            ) from error


def default_jobs(device: str) -> int:
    """One process a core; one in all on an accelerator."""
    return os.cpu_count() or 1 if on_cpu(device) else 1


def _perform_one(folder: Path, task: Task, device: str, owner: int) -> None:
    _end_with(owner)
    perform_one(folder, task, device)


@functools.cache
def _end_with(owner: int) -> None:
    """Let a worker process end when the run's process is gone: a killed run must not go on in its children.

    Ctrl-C in a terminal reaches the workers too; it is the run's process that ends them then, without their say.
    """
    if os.getpid() == owner:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
