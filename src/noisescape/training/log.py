"""What a monitor reported, read back from the log that a training wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisescape.errors import DataError, MissingPathError, NoFiguresError
from noisescape.training.log_formats import LogFiles, Row, find_log, names

PREFIX = "noise/"
STEPS = ("step", "global_step", "train/global_step", "trainer/global_step", "_step")
"""What loggers call the step, where a row has none of the monitor's own."""
SHOWN = 12


@dataclass(frozen=True)
class NoiseLog:
    """The figures of a monitor over the steps of a training.

    Attributes:
        path: the file they were read from, or the directory of the event files.
        steps: (n,) optimiser steps, increasing.
        columns: for each figure, by its full name (``noise/scale``), its (n,) values; nan where it was not
            reported. Units are those of the monitor's report: gradient noise, of one sample (not divided by B)
            unless the figure's own description says otherwise.
        written: when the log was last written to, in seconds since the epoch; nan where that is not known.
    """

    path: Path
    steps: np.ndarray
    columns: Mapping[str, np.ndarray]
    written: float = math.nan

    def last(self, key: str) -> float:
        """The last finite value of a figure, nan where there is none.

        An end of an interval may be infinite: take those from :meth:`at_last`, beside their figure.
        """
        column = self.columns.get(key)
        finite = np.empty(0) if column is None else column[np.isfinite(column)]
        return float(finite[-1]) if finite.size else math.nan

    def at_last(self, key: str) -> dict[str, float]:
        """All that was reported with the last value of a figure, itself too; empty where it never was."""
        column = self.columns.get(key)
        there = np.empty(0, int) if column is None else np.flatnonzero(~np.isnan(column))
        if not there.size:
            return {}
        row = {name: float(values[there[-1]]) for name, values in self.columns.items()}
        return {name: value for name, value in row.items() if not math.isnan(value)}

    def latest(self) -> dict[str, float]:
        """Each figure's last value that was reported, be it infinite."""
        return {key: float(column[~np.isnan(column)][-1]) for key, column in self.columns.items()}

    @property
    def groups(self) -> list[str]:
        """The names of the optimiser's parameter groups that have figures of their own."""
        start = f"{PREFIX}group/"
        found = [key.removeprefix(start).rpartition("/")[0] for key in self.columns if key.startswith(start)]
        return [name for name in dict.fromkeys(found) if name and not name.endswith("/preconditioned")]


def read_log(path: str | Path, *, prefix: str | None = None) -> NoiseLog:
    r"""The figures of a monitor in a log: CSV, JSON lines, TensorBoard, transformers or W&B.

    ``path`` is a CSV file with a header, JSON lines, a TensorBoard event file or its directory, transformers'
    ``trainer_state.json`` (or a checkpoint, or an output directory, whose newest checkpoint is taken), a W&B run
    (its directory or its ``.wandb`` file, offline too), or a directory that has exactly one of those in it.

    Figures are found by their names, also where a logger put something before them (``train/noise/scale``).
    Where a row's step is lower than one before, the training was resumed from there, and what was reported from
    that step on before is left out; of several values at one step the last counts. A last line that is still being
    written is not read; W&B writes its file down every 15 seconds. Infinite values are kept, in JSON ``Infinity``;
    where a writer put null for the upper end of an interval it is read as infinity: that end is never unknown.

    Args:
        path: the log.
        prefix: what the names of this monitor's figures begin with, where a log has those of several, or a monitor
            was given another; they are called ``noise/…`` in what is returned.

    Raises:
        MissingPathError: there is no such log.
        NoFiguresError: it has no such figures, at least not yet; the message says what it has.
        DataError: it cannot be read, or has figures of several monitors or no steps.
        CorruptFileError: it is damaged.
        FailedError: tensorboard or wandb, which wrote it, is not installed.

    >>> import tempfile
    >>> log = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> _ = log.write_text('{"noise/step": 100, "noise/scale": 250, "noise/scale_high": Infinity}\n{"loss": 1}\n')
    >>> found = read_log(log)
    >>> found.steps, found.last("noise/scale"), found.columns["noise/scale_high"]
    (array([100]), 250.0, array([inf]))
    """
    files = find_log(path)
    try:
        written = files.written
        rows = list(files.rows())
    except FileNotFoundError as error:  # it was replaced meanwhile
        raise MissingPathError(f"no such log: {error.filename}") from None
    except OSError as error:
        raise DataError(
            f"{files.path} cannot be read: {error.strerror or error}; restore it, or give another"
        ) from error
    lead = _lead(rows, files, prefix)
    return _tabulated([_renamed(row, lead) for row in rows], files, written)


def _lead(rows: Sequence[Row], files: LogFiles, prefix: str | None) -> str:
    """All that stands before the figures' own names."""
    known = names(rows)
    if prefix is not None:
        leads = [prefix] if any(key.startswith(prefix) for key in known) else []
    else:
        before = (key[: key.index(PREFIX)] for key in known if f"/{PREFIX}" in f"/{key}")
        leads = [f"{lead}{PREFIX}" for lead in dict.fromkeys(before) if not lead or lead.endswith("/")]
    if not leads:
        shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
        raise NoFiguresError(
            f"no figures {prefix or PREFIX}… in {files.path}; it has {shown or 'nothing yet'}. Log what "
            "Monitor.step returns"
        )
    if len(leads) > 1:
        raise DataError(f"{files.path} has figures of several monitors: name one, prefix={' or '.join(leads)}")
    return leads[0]


def _renamed(row: Row, lead: str) -> Row:
    """The monitor's figures by their own names, and the logger's step."""
    found = {f"{PREFIX}{key.removeprefix(lead)}": value for key, value in row.items() if key.startswith(lead)}
    step = next((row[name] for name in STEPS if name in row), None)
    return found if step is None else {"step": step, **found}


def _tabulated(rows: Sequence[Row], files: LogFiles, written: float) -> NoiseLog:
    own = f"{PREFIX}step"
    at: dict[int, Row] = {}
    for row in rows:
        figures = {key: value for key, value in row.items() if key.startswith(PREFIX) and not math.isnan(value)}
        if not figures.keys() - {own}:
            continue
        step = figures.get(own, row.get("step", math.nan))
        if not math.isfinite(step):
            raise DataError(f"a row of {files.path} has figures but no step: log {own} with them, or step")
        if at and step < next(reversed(at)):  # resumed: what lay beyond belongs to a training that was given up
            at = {earlier: kept for earlier, kept in at.items() if earlier < step}
        at.setdefault(round(step), {}).update(figures)
    if not at:
        raise NoFiguresError(f"no figures {PREFIX}… in {files.path} yet, only names")
    columns = {key: np.array([found.get(key, math.nan) for found in at.values()]) for key in names(at.values())}
    return NoiseLog(files.path, np.array(list(at), dtype=np.int64), columns, written)
