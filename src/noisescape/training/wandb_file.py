"""The records of a W&B run on disk, also of one that never went online.

A ``.wandb`` file is a seven-byte header and then LevelDB's log format: blocks of 32 KiB with fragments, each behind
its checksum, length and place in its record. The records are protocol buffers, whose classes W&B ships. Its own
reader of the framing came and went between releases, so the framing is read here.

https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from noisescape.errors import CorruptFileError, FailedError

MAGIC = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024
FRAGMENT = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def history(path: Path) -> Iterator[dict[str, str]]:
    """What each ``wandb.log`` wrote, as JSON by key; nested keys are joined by dots, as W&B shows them.

    Raises:
        CorruptFileError: this is no such file, or a byte of it has changed.
        FailedError: wandb is not installed.
    """
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time
    except ImportError:
        raise FailedError(f"reading {path} needs wandb, which is not installed: pip install wandb") from None
    for content in records(path):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            # the items come in any order, another each time
            items = ((item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item)
            yield dict(sorted(items))


def records(path: Path) -> Iterator[bytes]:
    """The records as they lie in the file, up to one that is still being written."""
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        if MAGIC.startswith(content):  # the run has just begun
            return
        raise CorruptFileError(
            f"{path} is not a W&B run file (it begins with {content[:7]!r}): restore it, or read another log"
        )
    position, record = len(MAGIC), b""
    while True:
        left = BLOCK - position % BLOCK
        if left < FRAGMENT.size:  # too little room for a fragment: the block is filled up with zeros
            position += left
        if position + FRAGMENT.size > len(content):
            return
        checksum, length, kind = FRAGMENT.unpack_from(content, position)
        position += FRAGMENT.size
        fragment = content[position : position + length]
        if len(fragment) < length:
            return
        if zlib.crc32(fragment, zlib.crc32(bytes([kind]))) != checksum:
            raise CorruptFileError(
                f"{path} is damaged at byte {position}, the checksum does not match: restore it, or give another"
            )
        position += length
        record = fragment if kind in (WHOLE, FIRST) else record + fragment
        if kind in (WHOLE, LAST):
            yield record
