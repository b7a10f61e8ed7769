"""Places where a file cannot be written: told in a line, before work where that can be known, and nothing left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import noise_logs
from cli_calls import Result, the_only_error
from resumed_experiments import contents

COMMANDS = {
    "measure": ("measure", "laboratory:make_network", "--batch-size", 3, "--fast", "--quiet"),
    "claims": ("claims", "run"),
    "report": ("report", "log.csv", "--quiet"),
}


def full(patch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(Path, "replace", refuse)


PLACES: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], object]]] = {
    "no folder": ("absent/found", "there is no directory absent for found: make it", lambda _patch: None),
    "a folder in the way": ("folder", "folder is a directory: give --out the name of a file", lambda _patch: None),
    "a file for a folder": (
        "log.csv/found",
        "there is no directory log.csv for found: make it",
        lambda _patch: None,
    ),
    "a name too long": ("x" * 300, "File name too long", lambda _patch: None),
    "read only": (
        "found",
        "nothing may be written to .: give another --out",
        lambda patch: patch.setattr(os, "access", lambda _path, mode: mode != os.W_OK),  # root may write everywhere
    ),
    "full": ("found", "no room on the disk for found: what was written before is intact", full),
}
CELLS = [(command, place) for command in COMMANDS for place in PLACES]


@pytest.mark.parametrize("count", [len(CELLS)], ids=[f"{len(CELLS)} cells"])
def test_the_matrix_is_whole(count: int) -> None:
    assert count == 18


@pytest.mark.parametrize(("command", "place"), CELLS)
def test_a_file_that_cannot_be_written_is_told_in_a_line(
    command: str,
    place: str,
    call: Callable[..., Result],
    small_hidden: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise_logs.as_csv(noise_logs.reports(), tmp_path / "log.csv")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run").symlink_to(small_hidden.path)  # type: ignore[attr-defined]
    before = contents(tmp_path, without=())
    out, message, prepare = PLACES[place]
    if place != "full":  # known before there is anything to write
        monkeypatch.setattr("noisescape.runs.storage.atomic_path", lambda path: pytest.fail("work was done"))
    prepare(monkeypatch)
    line = the_only_error(call(*COMMANDS[command], "--out", out))
    assert message in line
    after = {name: content for name, content in contents(tmp_path, without=()).items() if "__pycache__" not in name}
    assert after == before
