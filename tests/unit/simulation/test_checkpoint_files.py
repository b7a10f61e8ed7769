"""The file of a checkpoint: how often it is written, and what is no such file."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import F64, bowl_risk
from noisescape.errors import CorruptFileError
from noisescape.runs.storage import read_bundle, write_bundle
from noisescape.simulation.loop import simulate
from resuming import go, kept


def test_a_checkpoint_is_written_no_more_often_than_asked(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count()  # a second a look
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    seen: list[int] = []

    def watch(step: int) -> None:
        if checkpoint.exists():
            kept = read_bundle(checkpoint).notes["step"]
            seen.append(kept) if kept not in seen else None

    start = torch.ones(3, dtype=F64)
    options = {"lr": 0.1, "steps": 40, "progress": False, "checkpoint": checkpoint}
    simulate(bowl_risk(), ns.GD(), start, checkpoint_seconds=10, on_step=watch, **options)
    assert 2 <= len(seen) <= 4, seen


def test_a_checkpoint_from_before_risks_were_told_apart_is_not_trusted(checkpoint: Path) -> None:
    kept(checkpoint)
    bundle = read_bundle(checkpoint)
    earlier = {key: value for key, value in bundle.notes["identity"].items() if key != "risk"}
    tensors = {key: tensor for key, tensor in bundle.tensors.items() if key != "losses"}
    write_bundle(checkpoint, tensors, {**bundle.notes, "identity": earlier})
    with pytest.raises(ValueError, match=r"is of another run \(risk None there, "):
        go(checkpoint)


def test_a_checkpoint_that_holds_no_covariance_operator_is_not_trusted(checkpoint: Path) -> None:
    """Earlier versions kept a root without its kind."""
    kept(checkpoint)
    bundle = read_bundle(checkpoint)
    notes = {key: value for key, value in bundle.notes.items() if key != "covariance"}
    write_bundle(checkpoint, bundle.tensors, notes)
    with pytest.raises(CorruptFileError, match=r"is a checkpoint of an earlier version: remove it to start afresh"):
        go(checkpoint)
    assert checkpoint.exists()


def test_a_damaged_checkpoint_is_named_and_kept(checkpoint: Path) -> None:
    kept(checkpoint)
    whole = checkpoint.read_bytes()
    chance = random.Random(0)
    for _ in range(20):
        position = chance.randrange(len(whole))
        length = chance.randrange(len(whole))
        flipped = whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :]
        for damaged in (flipped, whole[:length], b""):
            checkpoint.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=r"cannot be read .* it is damaged") as caught:
                go(checkpoint)
            assert str(checkpoint) in str(caught.value)
            assert checkpoint.read_bytes() == damaged


@pytest.mark.parametrize(
    ("tensors", "notes"),
    [
        ({"theta": torch.ones(3, dtype=F64)}, {}),
        ({"theta": torch.ones(3, dtype=F64)}, {"epoch": 3, "rows": []}),
        ({"theta": torch.ones(3, dtype=F64)}, {"rows": [], "notes": {}, "order": ["theta"], "seconds": 1.0}),
    ],
    ids=["of a run", "of another loop", "a finished task"],
)
def test_a_whole_file_that_is_no_checkpoint_is_named(
    tensors: dict[str, Tensor], notes: dict[str, Any], checkpoint: Path
) -> None:
    write_bundle(checkpoint, tensors, notes)
    with pytest.raises(ValueError, match=r"kept\.safetensors"):
        go(checkpoint)
    assert checkpoint.exists()
