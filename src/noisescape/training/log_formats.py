"""Which file a training's log is, and its rows, whatever logger wrote it.

A row is what was logged at once, numbers by name. Files are read up to what is still being written.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisescape.errors import CorruptFileError, DataError, FailedError, MissingPathError, NoFiguresError
from noisescape.training.wandb_file import MAGIC, history

Row = dict[str, float]
FORMATS = (
    "CSV with a header, JSON lines, a TensorBoard event file, transformers' trainer_state.json or a W&B run "
    "(.wandb), or a directory with one of them"
)
TRAINER_STATE = "trainer_state.json"
LOGGED = (".csv", ".jsonl", ".ndjson", ".wandb")
DEPTH = 4
"""Directories below the given one that are looked through; loggers nest theirs up to three deep."""
LISTED = 8


@dataclass(frozen=True)
class LogFiles:
    """The files of one log: one, or several event files that a training wrote one after the other."""

    path: Path
    files: tuple[Path, ...]

    @property
    def written(self) -> float:
        """When it was last written to, in seconds since the epoch."""
        return max(file.stat().st_mtime for file in self.files)

    @property
    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever there is something new to read."""
        stats = [(str(file), file.stat()) for file in self.files]
        return tuple((name, found.st_size, found.st_mtime_ns) for name, found in stats)

    def rows(self) -> Iterator[Row]:
        """In the order in which they were written."""
        for file in self.files:
            yield from _rows(file)


def find_log(path: str | Path) -> LogFiles:
    """The log at a path: the file itself, or the only log in a directory.

    Of an output directory of transformers it is the newest ``trainer_state.json``, which has the history so far.

    Raises:
        MissingPathError: nothing is there.
        DataError: a directory with several logs.
        NoFiguresError: a directory without any.
    """
    path = Path(path)
    if path.is_file():
        return LogFiles(path, (path,))
    if not path.exists():
        raise MissingPathError(f"no such log: {path}")
    if not path.is_dir():  # a pipe, which would be waited for
        raise DataError(f"{path} is neither a file nor a directory; a log is {FORMATS}")
    if state := _trainer_state(path):
        return LogFiles(state, (state,))
    found = _candidates(path)
    if not found:
        raise NoFiguresError(f"no log in {path}; a log is {FORMATS}")
    if len(found) > 1:
        names = [str(log.path) for log in sorted(found, key=lambda log: log.written, reverse=True)]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        listed = ", ".join(names[:LISTED])
        raise DataError(f"{len(names)} logs in {path}, name one, newest first: {listed}{more}")
    return found[0]


def _trainer_state(directory: Path) -> Path | None:
    if (directory / TRAINER_STATE).is_file():
        return directory / TRAINER_STATE
    saved = [
        (int(match[1]), state)
        for state in directory.glob(f"checkpoint-*/{TRAINER_STATE}")
        if (match := re.fullmatch(r"checkpoint-(\d+)", state.parent.name))
    ]
    return max(saved)[1] if saved else None


def _candidates(directory: Path) -> list[LogFiles]:
    """The logs at the least depth where there are any: what a logger keeps further down is not another log."""
    level = [directory]
    for _ in range(DEPTH):
        found = [log for place in level for log in _directly_in(place)]
        if found:
            return found
        # a link to one of them, W&B's latest-run for one, would show the same log twice
        level = [
            Path(entry.path)
            for place in level
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name)
            if entry.is_dir(follow_symlinks=False)
        ]
    return []


def _directly_in(directory: Path) -> list[LogFiles]:
    files = sorted(file for file in directory.iterdir() if file.is_file())
    events = tuple(file for file in files if _is_events(file))
    others = [file for file in files if file.suffix in LOGGED or file.name == TRAINER_STATE]
    return [*([LogFiles(directory, events)] if events else []), *(LogFiles(file, (file,)) for file in others)]


def _is_events(file: Path) -> bool:
    return "tfevents" in file.name and not file.name.endswith(".profile-empty")


def _rows(file: Path) -> Iterator[Row]:
    if _is_events(file):
        yield from _event_rows(file)
        return
    with file.open("rb") as opened:
        start = opened.read(len(MAGIC))
    if file.suffix == ".wandb" or start == MAGIC:
        yield from (_numbers({key: _json(text) for key, text in row.items()}) for row in history(file))
        return
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file} is no log that can be read; a log is {FORMATS}") from None
    if text.lstrip()[:1] in ("{", "["):
        yield from (_numbers(row) for row in _json_rows(text, file))
    else:
        yield from _csv_rows(text, file)


def _event_rows(file: Path) -> Iterator[Row]:
    """Scalars logged at the same step one after the other are one row."""
    try:
        # "legacy" is what it does not do: turn every scalar into a tensor, which takes five times as long
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise FailedError(
            f"reading {file} needs tensorboard, which is not installed: pip install tensorboard"
        ) from None
    row: Row = {}
    for event in LegacyEventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                number = value.simple_value
            elif value.HasField("tensor") and not value.tensor.tensor_shape.dim and not value.tensor.string_val:
                number = make_ndarray(value.tensor).item()
            else:
                continue
            if row and row["step"] != event.step:
                yield row
                row = {}
            row |= {"step": float(event.step), value.tag: float(number)}
    if row:
        yield row


def _json_rows(text: str, file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        whole = json.loads(text)
    except ValueError:
        yield from _json_lines(text, file)
        return
    except RecursionError:
        raise DataError(f"{file} nests too deeply for a log; a log is {FORMATS}") from None
    rows = whole.get("log_history", [whole]) if isinstance(whole, dict) else whole
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is JSON, but neither a list of flat objects nor transformers' {TRAINER_STATE}")
    yield from rows


def _json_lines(text: str, file: Path) -> Iterator[Mapping[str, Any]]:
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # no line break after it: still being written
                return
            raise CorruptFileError(
                f"line {number} of {file} is not JSON: remove that line, or restore the file"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {file} is {type(row).__name__}, not an object")
        yield row


def _csv_rows(text: str, file: Path) -> Iterator[Row]:
    # a line without its end may be cut in the middle of a number
    whole = text[: text.rfind("\n") + 1]
    try:
        for cells in csv.DictReader(io.StringIO(whole, newline="")):
            yield {
                key: number
                for key, cell in cells.items()
                if isinstance(key, str) and isinstance(cell, str) and (number := _number(cell)) is not None
            }
    except csv.Error as error:
        raise DataError(f"{file} is no log that can be read ({error}); a log is {FORMATS}") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _numbers(row: Mapping[str, Any]) -> Row:
    """The numbers of a row that was JSON, which has no infinity of its own.

    Python writes ``Infinity``; others write null, or the word in quotes. A null is read as no figure but where it
    can only be infinity: at the upper end of an interval whose lower end is there.
    """
    found = {key: number for key, value in row.items() if (number := _number(value)) is not None}
    for key, value in row.items():
        if value is None and key.endswith("scale_high") and f"{key.removesuffix('high')}low" in found:
            found[key] = float("inf")
    return found


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def names(rows: Iterable[Row]) -> list[str]:
    """What the rows hold, each name once, in the order in which it first appears."""
    return list(dict.fromkeys(key for row in rows for key in row))
