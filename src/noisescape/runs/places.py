"""Where runs lie, and where a new one goes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from noisescape.errors import MissingPathError
from noisescape.runs.run import Run
from noisescape.runs.run import require_vacant as require_vacant


def default_run_path(experiment: str, root: Path = Path("runs")) -> Path:
    """A new run's own path: ``runs/EXPERIMENT-YYYYmmdd-HHMMSS-ffffff``, local time to the microsecond."""
    return root / f"{experiment}-{datetime.now().astimezone():%Y%m%d-%H%M%S-%f}"


def unfinished_run(experiment: str) -> Path | None:
    """The latest directory of an experiment, or of a suite of them, under ``runs`` that has no report yet."""
    begun = [
        path
        for path in sorted(Path("runs").glob(f"{experiment}-*"))
        if ((path / "run.json").is_file() or any(path.glob("*/run.json"))) and not (path / "report.html").exists()
    ]
    return begun[-1] if begun else None


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at these paths; a directory that is no run itself stands for the complete runs right inside it.

    Raises:
        FileNotFoundError: a path without any run, or a run that is not complete.
    """
    if not paths:
        raise MissingPathError("there is no run: give the directory of one, or of several")
    found: list[Run] = []
    for path in paths:
        if (path / "run.json").exists() or not path.is_dir():
            run = Run.open(path)
            run.summary()
            found.append(run)
            continue
        inside = [Run.open(entry) for entry in sorted(path.iterdir()) if (entry / "run.json").is_file()]
        complete = [run for run in inside if run.complete]
        if not complete:
            raise MissingPathError(f"{path} holds no complete run: give the directory of one, or of several")
        found += complete
    return found
