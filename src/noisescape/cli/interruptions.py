"""Ctrl-C, and the signals that ask a program to end: a line and an exit code, with no child left behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What else than Ctrl-C asks a program to end: a batch system, a terminal that is closed."""


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C's; what lets go of things on the one does on the other."""

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(note)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """As shells have it: 128 and the number of the signal."""
    return 128 + (error.number if isinstance(error, Ended) else int(signal.SIGINT))


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let :data:`ENDING` raise :class:`Ended`, so that files are closed and workers ended.

    A signal that somebody else handles or ignores, as ``nohup`` does, is left to them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [each for each in ENDING if signal.getsignal(each) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, _end)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def resumable() -> Iterator[None]:
    """Around work that ``--resume`` goes on with: an interruption says so."""
    note = "what was finished is kept; the same command with --resume goes on with it"
    try:
        yield
    except Ended as error:
        raise Ended(error.number, note) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(note) from None


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended(number)
