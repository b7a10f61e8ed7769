"""Programs of the tests on several real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

TESTS = Path(__file__).resolve().parent


def started(program: str, ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program of the tests under torchrun, when it has ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(TESTS / program), *arguments], env=environment, capture_output=True, text=True
    )


def of_ranks(
    program: str,
    ranks: int,
    out: Path,
    kind: str = "json",
    read: Callable[[Path], Any] = lambda path: json.loads(path.read_text()),
    *arguments: str,
) -> list[Any]:
    """What each rank of a program wrote to ``out``."""
    done = started(program, ranks, str(out), *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return [read(out / f"{rank}.{kind}") for rank in range(ranks)]


def once(factory: pytest.TempPathFactory, name: str, work: Callable[[Path], object]) -> Path:
    """A folder in which the work was done, by whichever of the tests' own processes came first."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            folder.mkdir()
            try:
                work(folder)
            except BaseException:
                folder.rename(root / f"{name}-failed-{os.getpid()}")
                raise
    return folder


def launched(program: str, ranks: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """A program as several processes that nobody watches over.

    torchrun ends the others itself when one is lost, before they can say so.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(TESTS / program), *arguments],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def at_once(program: str, ranks: int, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """What became of a program's processes when the first has ended."""
    running = launched(program, ranks, *arguments)
    try:
        out, error = running[0].communicate(timeout=120)
    finally:
        for process in running:
            process.kill()
    first = subprocess.CompletedProcess(running[0].args, running[0].returncode, out, error)
    rest = [(process, *process.communicate()) for process in running[1:]]
    return [first, *(subprocess.CompletedProcess(p.args, p.returncode, out, error) for p, out, error in rest)]
