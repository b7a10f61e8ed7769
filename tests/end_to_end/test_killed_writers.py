"""A kill at any moment leaves the old bundle or the new one, whole."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bundles import files, needs_limits
from noisescape.runs.storage import read_bundle, sweep
from slowness import quick

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from noisescape.runs.storage import write_bundle


def kill(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def halve(file):
    os.ftruncate(file, os.fstat(file).st_size // 2)
    kill()


moment = sys.argv[2]
if moment == "half written":
    os.fsync = halve
elif moment == "unsynced":
    os.fsync = kill
elif moment == "unnamed":
    Path.replace = kill
write_bundle(Path(sys.argv[1]), {"theta": torch.zeros(5000)}, {"version": 2})
kill()
"""


@needs_limits
@pytest.mark.parametrize("moment", quick(["half written"], ["unsynced", "unnamed", "after"]))
def test_a_kill_leaves_the_old_bundle_or_the_new(moment: str, path: Path, written: bytes) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path, moment], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if moment == "after":
        assert read_bundle(path).notes == {"version": 2}
    else:
        assert path.read_bytes() == written
    leftovers = files(path.parent) - {path.name}
    assert len(leftovers) == (moment != "after"), leftovers
    sweep(path.parent)
    assert files(path.parent) == {path.name}


WRITING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from noisescape.runs.storage import read_bundle, write_bundle

path, kills = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(0)
torch.set_num_threads(1)


def content(version):
    return {"theta": torch.full((20_000,), float(version)), "n": torch.full((version % 7,), version)}


write_bundle(path, content(0), {"version": 0})
seen = set()
for _ in range(kills):
    first = read_bundle(path).notes["version"]
    child = os.fork()
    if not child:
        version = first
        while True:
            version += 1
            write_bundle(path, content(version), {"version": version})
    time.sleep(chance.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    bundle = read_bundle(path)
    version = bundle.notes["version"]
    for name, tensor in content(version).items():
        assert torch.equal(bundle.tensors[name], tensor), (version, name)
    assert version >= first
    seen.add(version)
print(len(seen), sum(1 for _ in path.parent.iterdir()) - 1)
"""


@pytest.mark.slow
@needs_limits
def test_no_kill_at_a_random_moment_leaves_half_a_bundle(path: Path) -> None:
    kills = 40
    done = subprocess.run(
        [sys.executable, "-c", WRITING, path, str(kills)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    versions, leftovers = map(int, done.stdout.split())
    assert versions > 5, "the children did write"
    assert leftovers > 0, "some were caught in the act"
    sweep(path.parent)
    assert files(path.parent) == {path.name}
