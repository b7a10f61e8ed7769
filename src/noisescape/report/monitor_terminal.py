"""A training's log in the terminal: printed once, or drawn anew while the training writes it."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from noisescape.errors import CorruptFileError, InvalidValueError, NoFiguresError
from noisescape.printable import shortened
from noisescape.report.monitor_answers import answers
from noisescape.report.monitor_figures import Series, all_series, group_kinds
from noisescape.training.log import NoiseLog, read_log
from noisescape.training.log_formats import find_log

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 18
"""Columns of a curve; with the others it fits into 80."""
MOST_GROUPS = 8
TONES = {"good": "green", "care": "yellow", "bad": "red", "open": "bold"}
TICK = 1.0
"""Seconds between two looks at the clock."""


def print_log(log: NoiseLog, console: Console) -> None:
    """Print the latest figures and what they say, once."""
    console.print(log_view(log, time.time()))


def watch_log(
    path: str | Path,
    console: Console,
    *,
    every: float = 5.0,
    prefix: str | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Draw the latest figures anew whenever there are others, until interrupted from the keyboard.

    A log that is not there yet, or has no figures yet, is waited for.

    Raises:
        InvalidValueError: ``every`` is not positive.
        DataError: the path will not become a log by waiting: several logs, or another kind of file.
    """
    if not (math.isfinite(every) and every > 0):
        raise InvalidValueError(f"--every must be a positive number of seconds, not {every:g}")
    watched = _Watched(path, prefix)
    with (
        contextlib.suppress(KeyboardInterrupt),  # how one stops watching
        _interrupted() as interrupted,
        Live(console=console, auto_refresh=False, transient=False) as live,
    ):
        while not interrupted.is_set():
            begun = time.monotonic()
            watched.look()
            # a long log takes a while: no more than a tenth of the time goes into reading it
            until = clock() + max(every, 9 * (time.monotonic() - begun))
            while not interrupted.is_set():
                live.update(watched.view(clock()), refresh=True)
                left = until - clock()
                if left <= 0:
                    break
                interrupted.wait(min(TICK, left))


@contextlib.contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """What Ctrl-C sets; an exception in its place is lost where none can be raised, in a destructor say."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # to which signals go
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Watched:
    """A log and what was last read of it."""

    path: str | Path
    prefix: str | None
    log: NoiseLog | None = None
    state: object = None
    waiting: str = ""

    def look(self) -> None:
        """Read the log if it was written to since."""
        try:
            state = find_log(self.path).state
            if state == self.state:
                return
            self.log, self.state, self.waiting = read_log(self.path, prefix=self.prefix), state, ""
        except FileNotFoundError:  # never written yet, or being replaced
            self.waiting = f"waiting for {shortened(self.path)}, which is not there yet"
        except NoFiguresError:
            self.waiting = f"waiting for figures of a monitor in {shortened(self.path)}, which has none yet"
        except CorruptFileError:
            if self.log is None:
                raise
            self.waiting = "the log cannot be read at the moment; these figures are of before"

    def view(self, now: float) -> RenderableType:
        """What is to be seen."""
        waiting = Text(f"{self.waiting}; Ctrl-C to stop", style="yellow")
        if self.log is None:
            return waiting
        return Group(log_view(self.log, now), waiting) if self.waiting else log_view(self.log, now)


def log_view(log: NoiseLog, now: float) -> RenderableType:
    """The latest figures with their intervals and curves, and what they say.

    Args:
        log: what was read.
        now: seconds since the epoch, for the age of the last entry.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("figure", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("latest", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("curve", no_wrap=True, min_width=CURVE)
    groups = group_kinds(log)
    for found in all_series(log):
        table.add_row(Text(found.kind.label), found.latest, found.interval or "–", sparkline(found))
    if groups:
        table.add_row(Text("noise scale by group", style="dim"), "", "", "")
    for found in all_series(log, groups[:MOST_GROUPS]):
        table.add_row(Text(f"  {found.kind.label}"), found.latest, found.interval or "–", sparkline(found))
    parts: list[RenderableType] = [_heading(log, now), table]
    if len(groups) > MOST_GROUPS:
        parts.append(Text(f"  and {len(groups) - MOST_GROUPS} more parameter groups", style="dim"))
    parts.append(Text())
    for answer in answers(log):
        if answer.tone != "plain":  # a figure only, which stands in the table
            parts.append(Text.assemble((f"{answer.verdict}. ", TONES[answer.tone]), answer.answer))
    return Group(*parts)


def sparkline(found: Series, width: int = CURVE) -> str:
    """The values as blocks of growing height, the newest to the right; logarithmic where all are positive.

    >>> from noisescape.report.monitor_figures import NOISE_SCALE
    >>> steps = np.arange(4)
    >>> sparkline(Series(NOISE_SCALE, steps, 10.0 ** np.array([0, 1, 2, 3]), steps, steps), width=4)
    '▁▃▆█'
    """
    values = found.values[np.isfinite(found.values)]
    if not values.size:
        return ""
    parts = np.array_split(values, min(width, values.size))
    heights = np.array([np.median(part) for part in parts])
    if (heights > 0).all():
        heights = np.log(heights)
    least, extent = heights.min(), np.ptp(heights)
    if extent <= 1e-9 * max(1.0, abs(least)):
        return BLOCKS[3] * len(heights)
    levels = np.rint((heights - least) / extent * (len(BLOCKS) - 1)).astype(int)
    return "".join(BLOCKS[level] for level in levels)


def _heading(log: NoiseLog, now: float) -> Text:
    age = "" if math.isnan(log.written) else f" · last written {_age(now - log.written)} ago"
    reports = "1 report" if len(log.steps) == 1 else f"{len(log.steps)} reports"
    heading = Text(shortened(log.path, 48), style="bold")
    return heading.append(f"\nstep {log.steps[-1]} · {reports}{age}", style="dim not bold")


def _age(seconds: float) -> str:
    """How long ago, in the largest whole unit.

    >>> [_age(seconds) for seconds in (-1, 59, 61, 7300, 200000)]
    ['0 s', '59 s', '1 min', '2 h', '2 d']
    """
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
