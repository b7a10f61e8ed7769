"""Bundles and other files of a run, written and compared."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import normal
from noisescape.runs.storage import Bundle, write_bundle

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
    assert repr(found.notes) == repr(notes)  # by repr NaN equals NaN, and −0 differs from 0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - {".lock"}


def fill(target: Path) -> bytes:
    """Put an earlier whole file there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        write_bundle(target, {"x": torch.ones(3)}, {"earlier": True})
    else:
        target.write_bytes(b"earlier")
    return target.read_bytes()
