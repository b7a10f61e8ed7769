"""Tasks that worker processes of any engine can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from noisescape.errors import DataError
from noisescape.runs.tasks import Outcome


def square(value: float, *, checkpoint: Path) -> Outcome:
    return Outcome([{"value": value**2, "threads": torch.get_num_threads()}], {"b": torch.tensor([value])})


def slow_square(value: float, *, checkpoint: Path) -> Outcome:
    time.sleep(1.0)
    return square(value, checkpoint=checkpoint)


def killed_once(value: float, seen: str, *, checkpoint: Path) -> Outcome:
    """Its worker is killed in the middle, the first time."""
    if not Path(seen).exists():
        Path(seen).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(value, checkpoint=checkpoint)


def killed(*, checkpoint: Path) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome()


def refused(*, checkpoint: Path) -> Outcome:
    raise DataError("no such images; give --data-dir")


def folder_of(*, checkpoint: Path) -> Outcome:
    """Where a task may keep its unfinished work."""
    return Outcome([{"value": str(checkpoint.parent)}])
