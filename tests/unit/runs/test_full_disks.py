"""Where there is no room the earlier file stays, and the error says so."""

from __future__ import annotations

import errno
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bundles import files, fill, needs_limits
from noisescape.runs.run import Run, tidy
from noisescape.runs.storage import write_bundle, write_text

WRITERS = """
import json, resource, signal, sys
from pathlib import Path
import matplotlib
import torch
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from noisescape.runs.run import Run, tidy
from noisescape.runs.storage import write_bundle, write_text

torch.manual_seed(0)
random = torch.rand(100_000)
table = tidy({"value": value} for value in random[:20_000].tolist())
figure, axes = plt.subplots()
axes.plot(random[:5000])
attempts = json.loads(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
answers = {}
for name, (_, write) in attempts.items():
    run = Run(Path(sys.argv[1]) / name)
    try:
        exec(write)
        answers[name] = (0, "it was written")
    except OSError as error:
        answers[name] = (error.errno, str(error))
print(json.dumps(answers))
"""
ATTEMPTS = {
    "bundle": ("note.safetensors", "write_bundle(run.path / 'note.safetensors', {'x': random}, {})"),
    "long notes": ("note.safetensors", "write_bundle(run.path / 'note.safetensors', {}, {'x': random.tolist()})"),
    "checkpoint": ("checkpoints/end.safetensors", "run.write_tensors('end', {'x': random})"),
    "text": ("note.txt", "write_text(run.path / 'note.txt', 'x' * 100_000)"),
    "report": ("report.html", "run.write_report('x' * 100_000)"),
    "summary": ("summary.json", "run.write_summary({'x': random})"),
    "metrics": ("metrics.parquet", "run.write_metrics(table)"),
    "figure": ("figures/loss.png", "run.save_figure('loss', figure)"),
}


def assert_no_room(code: int, message: str, target: Path) -> None:
    assert code == errno.ENOSPC
    assert f"no room on the disk for {target}: what was written before is intact; make room" in message
    assert "\n" not in message


@pytest.fixture(scope="module")
def without_room(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes, int, str]]:
    """Every attempt to write more than fits: where, what was there before, and the error."""
    root = tmp_path_factory.mktemp("full")
    before = {name: fill(root / name / place) for name, (place, _) in ATTEMPTS.items()}
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, root, json.dumps(ATTEMPTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {name: (root / name / place, before[name], *answers[name]) for name, (place, _) in ATTEMPTS.items()}


@needs_limits
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_file_that_finds_no_room_leaves_the_earlier_one(
    attempt: str, without_room: dict[str, tuple[Path, bytes, int, str]]
) -> None:
    target, before, code, message = without_room[attempt]
    assert_no_room(code, message, target)
    assert target.read_bytes() == before
    place = ATTEMPTS[attempt][0]
    root = target.parents[place.count("/")]
    assert files(root) == {place}, "the temporary file is gone"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every temporary file is a device that is full."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(secrets, "token_hex", lambda _count: "0" * 8)

    def made(self: Path, name: str) -> Path:
        neighbour = original(self, name)
        if name.endswith(f"-{'0' * 8}{self.suffix}"):
            neighbour.symlink_to("/dev/full")
        return neighbour

    original = Path.with_name
    monkeypatch.setattr(Path, "with_name", made)
    yield
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("kind", ["bundle", "text", "metrics"])
@pytest.mark.usefixtures("full")
def test_a_full_device_leaves_the_earlier_file(kind: str, tmp_path: Path) -> None:
    target = tmp_path / {"bundle": "x.safetensors", "text": "x.txt", "metrics": "metrics.parquet"}[kind]
    before = b"earlier"
    target.write_bytes(before)

    def write() -> None:
        if kind == "bundle":
            write_bundle(target, {"x": torch.ones(100)}, {})
        elif kind == "text":
            write_text(target, "text")
        else:
            Run(tmp_path).write_metrics(tidy([{"step": 1}]))

    with pytest.raises(OSError, match="no room on the disk") as caught:
        write()
    assert_no_room(caught.value.errno or 0, str(caught.value), target)
    assert target.read_bytes() == before
    assert files(tmp_path) == {target.name}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_for_what_was_written_is_found_out_by_the_sync(
    code: int, path: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may put off finding room until then."""

    def sync(_file: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="no room on the disk") as caught:
        write_bundle(path, {"x": torch.ones(1)}, {})
    assert_no_room(caught.value.errno or 0, str(caught.value), path)
    assert path.read_bytes() == written
    assert files(path.parent) == {path.name}


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EROFS])
def test_another_failure_keeps_its_own_name(
    code: int, path: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(_file: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_bundle(path, {"x": torch.ones(1)}, {})
    assert caught.value.errno == code
    assert path.read_bytes() == written
    assert files(path.parent) == {path.name}
