"""Programs of the tests on several real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
) -> list[Any]:
    """What each rank of a program wrote to ``out``."""
    done = started(program, ranks, str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    return [read(out / f"{rank}.{kind}") for rank in range(ranks)]
