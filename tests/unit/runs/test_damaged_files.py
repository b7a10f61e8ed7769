"""No damage to a file goes unnoticed."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cases import normal
from noisescape.errors import CorruptFileError
from noisescape.runs.storage import read_bundle, write_bundle


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
