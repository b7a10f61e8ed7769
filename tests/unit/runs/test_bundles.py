"""A bundle comes back bit for bit, whatever its layout and order."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from bundles import NOTES, TENSORS, assert_same, bits, files
from cases import normal
from noisescape.runs.storage import read_bundle, write_bundle


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
