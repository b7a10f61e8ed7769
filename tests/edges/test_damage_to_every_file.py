"""Every file that is read back, damaged in every way: the right outcome, or one line that names the file.

Most files hold a checksum; no changed bit of theirs may change a number. Those that others write hold none: there a
bit may say something else, yet never in a traceback.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import noise_logs
from cli_calls import MODULE
from noisescape.cli import app
from noisescape.errors import NoisescapeError
from noisescape.experiments.experiment import Experiment
from noisescape.experiments.images import open_images
from noisescape.experiments.toy_2d import TOY_2D
from noisescape.runs.run import Run
from noisescape.training.branch_files import BranchFiles
from noisescape.training.log import read_log
from paper_runs import data_directory
from resumed_experiments import TOY, contents, perform, stop_within
from resuming import Stop, go, kept
from resuming import outcome as trajectory
from slowness import quick

Damage = Callable[[bytes], bytes | None]
"""A file's bytes ↦ those that take their place; None is a folder."""


def bit(seed: int) -> Damage:
    def flip(content: bytes) -> bytes:
        chance = random.Random(seed)
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(changed)

    return flip


BITS, QUICK_BITS = 12, 1
DAMAGES: dict[str, Damage] = {
    **{f"bit {seed}": bit(seed) for seed in range(BITS)},
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "a third": lambda content: content[: len(content) // 3],
    "without its last byte": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "folder": lambda content: None,
}
OTHER_JSON: dict[str, bytes] = {
    "list": b"[]",
    "null": b"null",
    "text": b'"summary"',
    "empty object": b"{}",
    "deep nest": b"[" * 100_000 + b"]" * 100_000,
    "deep nest of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge whole number": b'{"experiment": 1' + b"0" * 5000 + b"}",
    "huge decimal": b'{"experiment": 1e999}',
    "NaN": b'{"experiment": NaN}',
    "another encoding": '{"experiment": "é"}'.encode("utf-16"),
}


def invoked(*arguments: object) -> str:
    """What a command prints; its one line of error is raised, as the library raises it."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code:
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.stderr.startswith("error: "), result.stderr
        raise NoisescapeError(result.stderr.removeprefix("error: ").removesuffix("\n"))
    return str(result.stdout)


def judged(run: str) -> str:
    return invoked("claims", run, "--json")


def reported(run: str) -> object:
    return invoked("report", run), Path(run, "report.html").read_bytes()


def resumed(run: str) -> object:
    return invoked("reproduce", "toy-2d", "--out", run, "--resume", "--seed", TOY.seed, "--jobs", 1)


def continued(run: str) -> object:
    return contents(perform("toy-2d", Path(run), resume=True).path)


def loaded(run: str) -> object:
    found = Run.open(run)
    return [bits(found.tensors(path.stem)) for path in sorted(found.path.glob("checkpoints/*"))]


def bits(tensors: dict[str, Tensor]) -> object:
    return {
        name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in sorted(tensors.items())
    }


def simulated(place: str) -> object:
    return trajectory(go(Path(place, "unfinished.safetensors")))


def branch(place: str) -> object:
    return BranchFiles.open(Path(place), {"batch_size": 4}, 1.25).read(2, 0)


def watched(log: str) -> object:
    found = read_log(log)
    assert invoked("watch", log, "--once")
    return found.steps.tolist(), {name: column.tolist() for name, column in found.columns.items()}


def measured(place: str) -> str:
    shutil.copy(Path(place, "laboratory.py"), "laboratory.py")
    target = ("laboratory:make_network", "--batch-size", 3, "--fast", "--json")
    return invoked("measure", *target, "--state-dict", Path(place, "weights.safetensors"))


def seen(place: str) -> object:
    opened = open_images("svhn", "train", place)
    return opened.labels.tolist(), opened.pixels(torch.arange(opened.count)).numpy().tobytes()


@dataclass(frozen=True)
class Kind:
    """A kind of file, and what a user does with it.

    Attributes:
        file: place of the sound ones / path below it.
        use: place ↦ all that is learnt there.
        foreign: whether others write it, without a checksum.
    """

    file: str
    use: Callable[[str], object]
    foreign: bool = False

    @property
    def damages(self) -> dict[str, Damage]:
        others = OTHER_JSON if self.file.endswith((".json", ".jsonl")) else {}
        return DAMAGES | {name: lambda content, other=other: other for name, other in others.items()}


DONE, PARTIAL = "published-gd-0.done.safetensors", "published-gld-leading-0.partial.safetensors"
KINDS = [
    *(Kind(f"toy/{name}", use) for name in ("run.json", "summary.json") for use in (judged, reported, resumed)),
    *(Kind(f"toy/{name}", use) for name in ("metrics.parquet", "timing.json") for use in (reported,)),
    *(Kind(f"toy/{name}", judged) for name in ("metrics.parquet",)),
    Kind("toy/checkpoints/trajectories.safetensors", loaded),
    *(Kind(f"digits/{name}", judged) for name in ("run.json", "summary.json", "metrics.parquet")),
    *(Kind(f"begun/{name}", continued) for name in ("run.json", f"tasks/{DONE}", f"tasks/{PARTIAL}")),
    Kind("simulation/unfinished.safetensors", simulated),
    *(Kind(f"check/{name}", branch) for name in ("check.json", "branch-x2-seed0.json")),
    *(Kind(f"{name}/log.{name}", watched, foreign=True) for name in ("csv", "jsonl")),
    Kind("trainer/checkpoint-300/trainer_state.json", watched, foreign=True),
    Kind("events/events.out.tfevents", watched, foreign=True),
    Kind("wandb/run.wandb", watched, foreign=True),
    Kind("weights/weights.safetensors", measured, foreign=True),
    Kind("images/svhn/train_prefix.parquet", seen, foreign=True),
]
RARE = {f"bit {seed}" for seed in range(QUICK_BITS, BITS)}
"""More of the same: only with the slow tests."""
CELLS = [
    pytest.param(kind, name, id=f"{kind.use.__name__}-{kind.file}-{name}")
    for kind in KINDS
    for name in kind.damages
]
QUICK = [cell for cell in CELLS if cell.values[1] not in RARE][::7]
COUNT = 660
MENDS = re.compile(
    r"restore|[Rr]emove|move it|run the experiment again|get the|give |write one|a log is|Log what|go on with"
    r"|there are|cannot be continued with other"
)


@pytest.mark.parametrize("count", [len(CELLS)], ids=[f"{len(CELLS)} cells"])
def test_the_matrix_is_whole(count: int) -> None:
    assert count == COUNT
    assert len({cell.id for cell in CELLS}) == COUNT


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for every kind, undamaged."""
    root = tmp_path_factory.mktemp("sound")
    perform("toy-2d", root / "toy")
    perform("gd-sharpness", root / "digits", rates=(0.5,), steps=2)
    with pytest.MonkeyPatch.context() as patch:
        stop_within(patch, "toy-2d", 3, 6)
        with pytest.raises(Stop):
            perform("toy-2d", root / "begun")
    for place in ("simulation", "csv", "jsonl", "weights", "wandb", "events"):
        (root / place).mkdir()
    kept(root / "simulation" / "unfinished.safetensors")
    BranchFiles.open(root / "check", {"batch_size": 4}, 1.25).write(2, 0, [1.0, 0.5])
    rows = noise_logs.reports()
    noise_logs.as_csv(rows, root / "csv" / "log.csv")
    noise_logs.as_json_lines(rows, root / "jsonl" / "log.jsonl")
    (root / "trainer" / "checkpoint-300").mkdir(parents=True)
    state = {"log_history": [{"loss": 0.5, "step": 1}, *({**row, "step": row["noise/step"]} for row in rows)]}
    (root / "trainer" / "checkpoint-300" / "trainer_state.json").write_text(json.dumps(state))
    [events] = noise_logs.as_events(rows, root / "made-events").iterdir()
    shutil.copy(events, root / "events" / "events.out.tfevents")
    [run] = noise_logs.as_wandb(rows, root / "made-wandb").rglob("*.wandb")
    shutil.copy(run, root / "wandb" / "run.wandb")
    (root / "weights" / "laboratory.py").write_text(MODULE)
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, root / "weights" / "weights.safetensors")
    data_directory(root / "images", rows=12)
    return root


@pytest.fixture(scope="module")
def known() -> dict[Callable[[str], object], dict[str, object]]:
    """What each use of an undamaged place comes to."""
    return {}


@pytest.mark.parametrize(("kind", "damage"), quick(QUICK, CELLS))
def test_a_damaged_file_changes_nothing_or_is_named(
    kind: Kind,
    damage: str,
    sound: Path,
    known: dict[tuple[str, str], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(TOY_2D.presets, "quick", TOY)
    monkeypatch.setattr(Experiment, "report_parts", lambda self, run: ("drawn", []))  # figures take their time
    place, _, name = kind.file.partition("/")
    key = place, kind.use.__name__
    if key not in known:
        shutil.copytree(sound / place, place)
        known[key] = kind.use(place)
        shutil.rmtree(place)
    shutil.copytree(sound / place, place)
    file = Path(kind.file)
    content = file.read_bytes()
    file.unlink()
    changed = kind.damages[damage](content)
    assert changed != content
    if changed is None:
        file.mkdir()
    else:
        file.write_bytes(changed)
    try:
        found = kind.use(place)
    except (NoisescapeError, OSError) as error:
        message = str(error)
        assert "\n" not in message, message
        assert Path(name).name in message or place in message, message
        assert MENDS.search(message), message
    else:
        assert kind.foreign or found == known[key], "noticed by nobody"
