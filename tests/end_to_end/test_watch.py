"""`noisescape watch` as a process in a terminal, while a training writes its log."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.cells import cell_len

from cli_calls import Result, plain, the_error
from noise_logs import as_csv, as_events, as_json_lines, reports

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE = 60.0


class Terminal:
    """A program in a pseudo-terminal of 80 columns."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.process = master, process
        self.output = ""

    def wait_for(self, text: str) -> None:
        """Read on until the text has been shown since the last time."""
        start, until = len(self.output), time.monotonic() + PATIENCE
        while text not in " ".join(ESCAPE.sub("", self.output[start:]).split()):
            assert time.monotonic() < until, f"no {text!r} in {self.output[start:]}"
            self.read(until)

    def read(self, until: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, until - time.monotonic()))
        try:
            found = os.read(self.master, 65536) if ready else b""
        except OSError:  # the other end is closed
            return False
        self.output += found.decode(errors="replace")
        return bool(found)

    def interrupt(self) -> int:
        """Ctrl-C, as typed; the exit code."""
        os.write(self.master, b"\x03")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.read(until):
            pass
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "noisescape", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C goes to who owns the terminal
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(master)


def test_it_follows_a_training_until_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, second, third = reports()
    with terminal("watch", str(path), "--every", "0.2") as seen:
        seen.wait_for("which is not there yet; Ctrl-C to stop")
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"loss": 1.0}) + "\n")
            log.flush()
            seen.wait_for("which has none yet; Ctrl-C to stop")
            log.write(json.dumps(first) + "\n" + json.dumps(second)[:40])  # caught in the middle of a line
            log.flush()
            seen.wait_for("step 100 · 1 report ·")
            log.write(json.dumps(second)[40:] + "\n")
            log.flush()
            seen.wait_for("step 200 · 2 reports ·")
            log.write(json.dumps(third) + "\n")
            log.flush()
            seen.wait_for("step 300 · 3 reports ·")
            seen.wait_for("B = 64 is below the noise scale.")
        assert seen.interrupt() == 0
    assert "Traceback" not in seen.output
    assert "Aborted" not in seen.output
    assert seen.output.rstrip().endswith("\x1b[?25h"), "the cursor is back"
    lines = ESCAPE.sub("", seen.output).replace("\r", "\n").splitlines()
    assert max(cell_len(line.rstrip()) for line in lines) <= 80


@pytest.mark.slow
def test_a_mistake_ends_it_with_one_line(tmp_path: Path) -> None:
    as_csv(reports(), tmp_path / "a.csv")
    as_csv(reports(), tmp_path / "b.csv")
    with terminal("watch", str(tmp_path)) as seen:
        seen.wait_for("error: 2 logs in")
        assert seen.process.wait(PATIENCE) == 1
    assert "Traceback" not in seen.output


@pytest.mark.parametrize("once", [["--once"], []])
def test_a_pipe_gets_it_once(once: list[str], call: Callable[..., Result], tmp_path: Path) -> None:
    as_events(reports(), tmp_path / "runs")
    told = plain(call("watch", "runs", *once))
    assert "step 300 · 3 reports · last written 0 s ago" in told
    assert "noise scale 750 600 to 938" in told
    assert "B = 64 is below the noise scale." in told


def test_once_nothing_is_waited_for(call: Callable[..., Result], tmp_path: Path) -> None:
    assert the_error(call("watch", "absent.csv", "--once")) == "error: no such log: absent.csv"
    as_csv([{"loss": 1.0}], tmp_path / "log.csv")
    assert "no figures noise/… in log.csv; it has loss" in the_error(call("watch", "log.csv", "--once"))
    as_json_lines([{"step": 1, "a/noise/scale": 4.0, "b/noise/scale": 5.0}], tmp_path / "two.jsonl")
    assert "5" in plain(call("watch", "two.jsonl", "--once", "--prefix", "b/noise/"))
