"""What a report can be about: a run, or the log of a training."""

from __future__ import annotations

from pathlib import Path

from noisescape.errors import MissingPathError, NoFiguresError
from noisescape.runs.run import Run
from noisescape.training.log import NoiseLog, read_log
from noisescape.training.log_formats import find_log


def open_subject(path: Path, *, prefix: str | None = None) -> Run | NoiseLog:
    """The run in a directory, or else the log at a path.

    Raises:
        MissingPathError: neither is there.
        DataError: the log cannot be read.
    """
    if not path.exists() or (path / "run.json").exists():
        return Run.open(path)
    try:
        find_log(path)
    except NoFiguresError:
        raise MissingPathError(
            f"{path} is not a run's directory: it holds no run.json, nor a training's log"
        ) from None
    return read_log(path, prefix=prefix)
