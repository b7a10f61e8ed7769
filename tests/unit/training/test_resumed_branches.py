"""Branches kept in a directory: a check that was ended goes on, and only with its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import noisescape as ns
from branch_cases import lively, lively_data, train_a_little
from noisescape.errors import CorruptFileError, InvalidValueError, OccupiedPathError
from noisescape.training.branch_training import Laboratory
from noisescape.training.branches import BranchedCheck
from slowness import quick

NAMES = {f"branch-x{k}-seed{seed}.json" for k in (1, 2) for seed in (0, 1, 2)}


def check(out: Path | None, **changed: Any) -> BranchedCheck:
    model = lively()
    optimizer = torch.optim.Adam(model.parameters(), lr=changed.pop("lr", 0.01))
    with torch.random.fork_rng():
        torch.manual_seed(changed.pop("trained_with", 0))
        train_a_little(model, optimizer, lively_data())
    settings = {"batch_size": 4, "multiples": (1, 2), "samples": 64, "tolerance": 0.1, "seeds": 3} | changed
    data, loss = settings.pop("data", lively_data()), settings.pop("loss", cross_entropy)
    return ns.branched_check(model, optimizer, loss, data, **settings, out=out)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every branch that is really trained, as (multiple, seed)."""
    calls: list[tuple[int, int]] = []
    train = Laboratory.train

    def noted(self: Laboratory, multiple: int, seed: int, advance: Any) -> list[float]:
        calls.append((multiple, seed))
        return train(self, multiple, seed, advance)

    monkeypatch.setattr(Laboratory, "train", noted)
    return calls


def test_a_directory_changes_no_number(tmp_path: Path) -> None:
    assert check(tmp_path / "check") == check(None)
    assert {path.name for path in (tmp_path / "check").iterdir()} == {"check.json", *NAMES}


CHANGES = [
    pytest.param({"batch_size": 8}, "batch_size 4 there, 8 now", id="batch size"),
    pytest.param({"samples": 32}, "samples 64 there, 32 now", id="samples"),
    pytest.param({"rule": "linear"}, "rule sqrt there, linear now", id="rule"),
    pytest.param({"micro_batch_size": 2}, "micro_batch_size None there, 2 now", id="micro-batch size"),
    pytest.param({"multiples": (1, 4)}, "evaluated_at [56, 64] there, [64] now", id="multiples"),
    pytest.param({"lr": 0.02}, "optimizer ", id="optimiser"),
    pytest.param({"trained_with": 5}, "model ", id="model"),
    pytest.param({"data": lively_data(47)}, "data ", id="data"),
    pytest.param({"evaluation": lively_data(20)}, "evaluation ", id="evaluation"),
    pytest.param({"evaluation": lambda model: 3.0}, "evaluation ", id="evaluation by a function"),
    pytest.param({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "loss at the checkpoint ", id="loss"),
]


@pytest.mark.parametrize("ended_after", quick([0, 3], range(6)))
def test_a_check_that_was_ended_goes_on(ended_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int]] = []
    train = Laboratory.train

    def until(self: Laboratory, multiple: int, seed: int, advance: Any) -> list[float]:
        if len(done) == ended_after:
            raise KeyboardInterrupt
        done.append((multiple, seed))
        return train(self, multiple, seed, advance)

    monkeypatch.setattr(Laboratory, "train", until)
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path)
    ended_after = 99
    assert check(tmp_path) == check(None)
    assert done[:6] == [(k, seed) for seed in range(3) for k in (1, 2)], "each of them once"


def test_what_is_finished_is_not_trained_again(tmp_path: Path, trained: list[tuple[int, int]]) -> None:
    first = check(tmp_path)
    assert len(trained) == 6
    assert check(tmp_path) == first
    assert len(trained) == 6


def test_more_seeds_and_another_tolerance_go_on_from_what_is_there(
    tmp_path: Path, trained: list[tuple[int, int]]
) -> None:
    check(tmp_path)
    more = check(tmp_path, seeds=4, tolerance=10.0)
    assert trained[6:] == [(1, 3), (2, 3)]
    assert more == check(None, seeds=4, tolerance=10.0)
    assert check(tmp_path, seeds=(1, 3)) == check(None, seeds=(1, 3))


def test_a_branch_that_diverged_is_kept_as_such(tmp_path: Path, trained: list[tuple[int, int]]) -> None:
    """The larger one only: after its one step the loss is not finite."""
    small, large = [1.0], [math.inf]

    def losses(self: Laboratory, multiple: int, seed: int, advance: Any) -> list[float]:
        trained.append((multiple, seed))
        return {1: small, 2: large}[multiple]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Laboratory, "train", losses)
        first = check(tmp_path)
    assert first.branches[1].diverged == 3
    assert json.loads((tmp_path / "branch-x2-seed0.json").read_text())["losses"] == [None]
    assert check(tmp_path) == first
    assert len(trained) == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    quick(CHANGES[::3], CHANGES),
)
def test_another_check_is_refused_there(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    check(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidValueError) as refused:
        check(tmp_path, **changed)
    assert message in str(refused.value)
    assert "holds branches of another check" in str(refused.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OccupiedPathError, match="not empty"):
        check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", quick(["{", '{"losses": "many"}'], ["", "[1.0]", '{"losses": [true]}', "{}"]))
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    check(tmp_path)
    (tmp_path / "branch-x2-seed1.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"branch-x2-seed1.json .*[Rr]emove it"):
        check(tmp_path)
    (tmp_path / "branch-x2-seed1.json").unlink()
    assert check(tmp_path) == check(None)


def test_leftovers_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    check(tmp_path)
    (tmp_path / ".noisescape-branch-x2-seed1-123-0a1b2c3d.json").write_text("half")
    check(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"check.json", *NAMES}
