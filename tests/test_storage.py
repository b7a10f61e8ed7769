"""Files that are there whole or not at all: round trips, damage, full disks, kills, leftovers."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import secrets
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cases import normal
from noisescape.errors import CorruptFileError
from noisescape.runs.run import Run, tidy
from noisescape.runs.storage import Bundle, atomic_path, read_bundle, sweep, write_bundle, write_text

NAN, INF = math.nan, math.inf
TENSORS = {
    "theta": torch.tensor([1.5, NAN, INF, -INF, -0.0, 1e-45], dtype=torch.float32),
    "values/loss": normal(3, 2, seed=1),
    "steps/loss": torch.tensor([0, 5, -(2**62)]),
    "generator": torch.arange(256, dtype=torch.uint8),
    "corrupted": torch.tensor([True, False, True]),
    "labels": torch.tensor([3, -1], dtype=torch.int32),
    "half": torch.tensor([1.0, NAN], dtype=torch.float16),
    "brain": torch.tensor([1.0, -INF], dtype=torch.bfloat16),
    "diverged_at": torch.tensor(-1),
    "scalar": torch.tensor(0.1, dtype=torch.float64),
    "flag": torch.tensor(True),
    "empty": torch.zeros(0),
    "empty/rows": torch.zeros(0, 3, dtype=torch.int64),
    "Σ “quoted”": torch.ones(1),
}
NOTES = {
    "rows": [{"metric": "loss", "value": NAN, "step": 3, "ok": True, "late": None}],
    "numbers": [INF, -INF, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 2**70],
    "text": 'Tr(HΣ) \n "quoted" \\ \ud800',
    "nested": {"": {"empty": [], "none": {}}},
}
needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits and signals")


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """What a tensor is, to the last bit; NaNs count as what they are."""
    return tensor.dtype, tensor.shape, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Bundle, tensors: dict[str, Tensor], notes: object) -> None:
    assert {name: bits(tensor) for name, tensor in found.tensors.items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }
    assert repr(found.notes) == repr(notes)  # repr tells NaN from NaN no more, and −0 from 0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "descent-0.partial.safetensors"


@pytest.fixture
def written(path: Path) -> bytes:
    write_bundle(path, {"theta": normal(5, seed=3), "n": torch.arange(3)}, {"step": 7, "rows": [NAN]})
    return path.read_bytes()


# ---------------------------------------------------------------------- round trips


def test_every_dtype_and_shape_comes_back_bit_for_bit(path: Path) -> None:
    write_bundle(path, TENSORS, NOTES)
    assert_same(read_bundle(path), TENSORS, NOTES)
    assert files(path.parent) == {path.name}


def test_nothing_at_all_is_a_bundle_too(path: Path) -> None:
    write_bundle(path, {}, {})
    assert_same(read_bundle(path), {}, {})


@pytest.mark.parametrize(
    "tensor",
    [
        normal(4, 3, seed=1).T,
        normal(8, seed=1)[::3],
        normal(8, seed=1).expand(3, -1),
        normal(1, seed=1).expand(2, 5),
        normal(2, 3, 4, seed=1).movedim(0, -1),
        normal(8, seed=1)[3:],
        torch.arange(12, dtype=torch.uint8)[1::2],
        normal(3, seed=1).requires_grad_(),
    ],
    ids=["transposed", "strided", "expanded", "one number", "moved", "offset", "bytes", "with gradient"],
)
def test_the_layout_in_memory_does_not_matter(path: Path, tensor: Tensor) -> None:
    write_bundle(path, {"x": tensor}, {})
    found = read_bundle(path).tensors["x"]
    assert bits(found) == bits(tensor)
    assert not found.requires_grad


def test_tensors_that_share_memory_are_written_one_by_one(path: Path) -> None:
    base = normal(6, seed=1)
    tensors = {"all": base, "again": base, "part": base[2:4], "turned": base.reshape(2, 3).T}
    write_bundle(path, tensors, {})
    found = read_bundle(path).tensors
    assert {name: bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }
    before = bits(found["again"])
    found["all"].add_(1)
    assert bits(found["again"]) == before


@pytest.mark.parametrize("padding", range(8))
def test_what_is_read_lies_in_memory_as_what_is_computed(path: Path, padding: int) -> None:
    """Products of matrices round otherwise from an odd address on, and a resumed run would part from its twin."""
    write_bundle(path, {"root": normal(40, 5, seed=1), "theta": torch.ones(3)}, {"pad": " " * padding * 8})
    for tensor in read_bundle(path).tensors.values():
        assert tensor.data_ptr() % 64 == torch.empty(100).data_ptr() % 64 == 0


def test_what_was_read_outlives_its_file_and_can_be_changed(path: Path, written: bytes) -> None:
    found = read_bundle(path)
    expected = bits(found.tensors["theta"])
    path.unlink()
    assert bits(found.tensors["theta"]) == expected
    path.write_bytes(written)
    found.tensors["theta"].zero_()
    assert path.read_bytes() == written


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter_to_what_is_read(path: Path, seed: int) -> None:
    names = list(TENSORS)
    random.Random(seed).shuffle(names)
    write_bundle(path, {name: TENSORS[name] for name in names}, NOTES)
    assert_same(read_bundle(path), TENSORS, NOTES)


def test_equal_bundles_are_equal_files(path: Path) -> None:
    """Each time anew: an order left to chance would show in one of twenty."""
    found = set()
    for _ in range(20):
        write_bundle(path, TENSORS, NOTES)
        found.add(path.read_bytes())
    assert len(found) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_a_bundle_is_as_readable_as_any_other_file(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", {"x": torch.ones(1)}, {})
    (tmp_path / "text").write_text("x")
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "text").stat().st_mode


@pytest.mark.parametrize("notes", [{"path": Path("x")}, {"tensor": torch.ones(1)}, MappingProxyType({})])
def test_notes_that_are_not_json_leave_the_old_file(path: Path, written: bytes, notes: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_bundle(path, {"x": torch.ones(1)}, notes)
    assert path.read_bytes() == written
    assert files(path.parent) == {path.name}


# ---------------------------------------------------------------------- damage


def assert_damaged(path: Path) -> None:
    with pytest.raises(CorruptFileError) as caught:
        read_bundle(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("it is damaged. Remove it, and --resume does that part again")
    assert "\n" not in message


def test_no_changed_byte_goes_unnoticed(path: Path, written: bytes) -> None:
    start = 8 + struct.unpack("<Q", written[:8])[0]
    padding = len(written[:start]) - len(written[:start].rstrip(b" "))
    chance = random.Random(0)
    for position in range(len(written)):
        for changed in {written[position] ^ 1, written[position] ^ 0xFF, chance.randrange(256)}:
            inert = start - padding <= position < start and chr(changed).isspace()  # JSON's own white space
            if changed != written[position] and not inert:
                path.write_bytes(written[:position] + bytes([changed]) + written[position + 1 :])
                assert_damaged(path)


def test_no_missing_end_goes_unnoticed(path: Path, written: bytes) -> None:
    for length in range(len(written)):
        path.write_bytes(written[:length])
        assert_damaged(path)


@pytest.mark.parametrize("seed", range(20))
def test_no_lost_block_goes_unnoticed(path: Path, seed: int) -> None:
    """What a power cut leaves of a file that was never synced: its length, and zeros."""
    write_bundle(path, {"theta": normal(3000, seed=3)}, {"rows": [{"value": step} for step in range(300)]})
    whole = path.read_bytes()
    chance = random.Random(seed)
    first = chance.randrange(len(whole) // 512) * 512
    last = chance.randrange(first + 1, len(whole) + 1)
    path.write_bytes(whole[:first] + bytes(last - first) + whole[last:])
    assert_damaged(path)


def alien(kind: str, path: Path, written: bytes) -> None:
    other = {"theta": normal(5, seed=3)}
    if kind == "without notes":
        save_file(other, path)
    elif kind == "of another program":
        save_file(other, path, metadata={"format": "pt"})
    elif kind == "notes without checksum":
        save_file(other, path, metadata={"notes": "{}"})
    elif kind == "checksum without notes":
        save_file(other, path, metadata={"digest": "0" * 64})
    elif kind == "checksum of nothing":
        save_file({}, path, metadata={"notes": "", "digest": ""})
    elif kind == "a pickle":
        torch.save(other, path)
    else:
        contents = {
            "empty": b"",
            "text": b"theta = 1.5\n" * 50,
            "json": json.dumps({"theta": [1.5]}).encode(),
            "zeros": bytes(len(written)),
            "twice": written * 2,
            "one byte more": written + b"\0",
            "huge header": struct.pack("<Q", 2**63) + written[8:],
            "parquet": b"PAR1" + bytes(100) + b"PAR1",
        }
        path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind",
    [
        "without notes",
        "of another program",
        "notes without checksum",
        "checksum without notes",
        "checksum of nothing",
        "a pickle",
        "empty",
        "text",
        "json",
        "zeros",
        "twice",
        "one byte more",
        "huge header",
        "parquet",
    ],
)
def test_something_else_is_named(path: Path, written: bytes, kind: str) -> None:
    alien(kind, path, written)
    assert_damaged(path)


def test_two_tensors_that_changed_places_are_noticed(path: Path) -> None:
    write_bundle(path, {"a": torch.ones(2), "b": torch.zeros(2)}, {})
    whole = path.read_bytes()
    swapped = whole.replace(b'"a":', b'"?":').replace(b'"b":', b'"a":').replace(b'"?":', b'"b":')
    assert swapped != whole
    path.write_bytes(swapped)
    assert_damaged(path)


def test_a_shape_that_changed_is_noticed(path: Path) -> None:
    write_bundle(path, {"a": torch.ones(2, 3)}, {})
    whole = path.read_bytes()
    turned = whole.replace(b"[2,3]", b"[3,2]")
    assert turned != whole
    path.write_bytes(turned)
    assert_damaged(path)


def test_no_file_is_no_damage(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=path.name):
        read_bundle(path)


# ---------------------------------------------------------------------- no room

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
told = {}
for name, (_, write) in attempts.items():
    run = Run(Path(sys.argv[1]) / name)
    try:
        exec(write)
        told[name] = (0, "it was written")
    except OSError as error:
        told[name] = (error.errno, str(error))
print(json.dumps(told))
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


def fill(target: Path) -> bytes:
    """Put an earlier whole file there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        write_bundle(target, {"x": torch.ones(3)}, {"earlier": True})
    else:
        target.write_bytes(b"earlier")
    return target.read_bytes()


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
    told = json.loads(done.stdout)
    return {name: (root / name / place, before[name], *told[name]) for name, (place, _) in ATTEMPTS.items()}


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


# ---------------------------------------------------------------------- kills

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
@pytest.mark.parametrize("moment", ["half written", "unsynced", "unnamed", "after"])
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


# ---------------------------------------------------------------------- leftovers


def leftover(target: Path) -> Path:
    """The temporary file of a writer that was killed before it could tidy up."""
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        name = temporary
    name.write_text("half")
    target.unlink()
    return name


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", experiment="toy", config={"lr": 0.1}, seed=3)


PLACES = [
    "run.json",
    "metrics.parquet",
    "summary.json",
    "timing.json",
    "report.html",
    "tasks/escape-gld-top-eigenvector-3.done.safetensors",
    "tasks/published-gd-0.partial.safetensors",
    "checkpoints/minima.safetensors",
    "figures/loss.png",
    "figures/loss.svg",
]


def test_resuming_removes_every_leftover_of_a_killed_writer(begun: Run) -> None:
    left = []
    for place in PLACES[1:]:
        (begun.path / place).parent.mkdir(exist_ok=True)
        left.append(leftover(begun.path / place))
    kept = fill(begun.path / "tasks" / "descent-0.done.safetensors")
    Run.resume(begun.path, experiment="toy", config={"lr": 0.1}, seed=3)
    assert [path for path in left if path.exists()] == []
    assert files(begun.path) == {"run.json", "tasks/descent-0.done.safetensors"}
    assert (begun.path / "tasks" / "descent-0.done.safetensors").read_bytes() == kept


def test_a_run_killed_before_its_first_file_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    leftover(tmp_path / "run" / "run.json")
    run = Run.resume(tmp_path / "run", experiment="toy", config={"lr": 0.1}, seed=3)
    assert files(run.path) == {"run.json"}
    assert run.info["config"] == {"lr": 0.1}


OWN = [
    ".gitignore",
    ".DS_Store",
    ".~lock.notes-of-mine.odt#",
    ".config-of-settings.json",
    ".run-config-settings.json",
    ".notes-of-20240101.txt",
    ".a-b-12345678.d/inside",
    ".git/hooks/.pre-commit-original.sample",
    "my-notes-20240101.txt",
    "tasks/.nfs000000000000000000000001",
    "tasks/.backup-of-partials.safetensors",
    "mine/deep/.draft-1-deadbeef.txt",
    "mine/.draft-of-thoughts.md",
]


@pytest.mark.parametrize("name", OWN)
def test_files_that_are_not_the_programs_are_left_alone(begun: Run, name: str) -> None:
    own = begun.path / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("precious")
    Run.resume(begun.path, experiment="toy", config={"lr": 0.1}, seed=3)
    assert own.read_text() == "precious"


@pytest.mark.parametrize("name", OWN)
def test_a_directory_that_is_no_run_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    own = tmp_path / "home" / name
    own.parent.mkdir(parents=True)
    own.write_text("precious")
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        Run.resume(tmp_path / "home", experiment="toy", config={"lr": 0.1}, seed=3)
    assert own.read_text() == "precious"


def test_another_run_is_refused_and_untouched(begun: Run) -> None:
    """It may be at work."""
    (begun.path / "tasks").mkdir()
    temporary = leftover(begun.path / "tasks" / "descent-0.done.safetensors")
    with pytest.raises(ValueError, match=r"lr = 0\.1 there, 0\.2 now"):
        Run.resume(begun.path, experiment="toy", config={"lr": 0.2}, seed=3)
    assert temporary.exists()


def test_a_file_in_the_runs_place_is_refused_and_untouched(tmp_path: Path) -> None:
    place = tmp_path / ".draft-1-deadbeef.txt"
    place.write_text("precious")
    with pytest.raises(FileExistsError, match="is a file"):
        Run.resume(place, experiment="toy", config={}, seed=0)
    assert place.read_text() == "precious"


def test_a_damaged_table_is_never_read_as_a_shorter_one(begun: Run) -> None:
    begun.write_metrics(tidy([{"step": step, "value": 0.5 * step} for step in range(100)]))
    path = begun.path / "metrics.parquet"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises((pa.ArrowInvalid, OSError)):
            begun.metrics()
