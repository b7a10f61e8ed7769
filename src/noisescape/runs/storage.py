"""Files that are there whole or not at all: text, and tensors with what belongs to them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from noisescape.errors import CorruptFileError, InvalidValueError, StorageError

_TEMPORARY = re.compile(r"\.noisescape-.+-\d+-[0-9a-f]{8}(\.\w+)?")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, moved onto it once the block has succeeded.

    After an exception, or a kill at any moment, ``path`` is what it was before: the old whole file
    or nothing. The temporary name keeps the suffix, since writers choose a format by it.

    Raises:
        OSError: the disk is full, among others; the message says that earlier files are intact.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("whole")
    ...     target.exists()
    False
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".noisescape-{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {path}: write to the path that atomic_path yields")
        # without the sync a power cut could leave the new name on data that never reached the disk
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in NO_ROOM or any(f"os error {code}" in str(error) for code in NO_ROOM):
            raise StorageError(
                errno.ENOSPC,
                f"no room on the disk for {path}: what was written before is intact; make room, then continue "
                "with --resume",
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Remove the temporary files that killed writers left behind right in a directory."""
    for leftover in directory.glob(".noisescape-*"):
        if _TEMPORARY.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)


def require_regular(path: Path) -> None:
    """Of a pipe one would wait for the other end."""
    if path.exists() and not path.is_file():
        raise InvalidValueError("it is no regular file")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Bundle:
    """Tensors by name, and what belongs to them in JSON's own types."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def write_bundle(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and notes to one safetensors file. Floats, NaN among them, come back bit for bit."""
    # safetensors takes neither strided tensors nor two that share memory, as tied weights do
    owned = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
    }
    text = json.dumps(notes)
    # one entry, since several would come in any order and equal bundles should be equal files
    stored = json.dumps({"digest": _digest(owned, text), "notes": text})
    with atomic_path(path) as temporary:
        # not save_file, which writes through a temporary file of its own that a kill would leave behind
        temporary.write_bytes(save(owned, metadata={"bundle": stored}))


def read_bundle(path: Path) -> Bundle:
    """What :func:`write_bundle` wrote, the tensors on the CPU.

    Raises:
        CorruptFileError: the file is damaged, or is something else.
        FileNotFoundError: there is none.
    """
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as file:
            # clones: products of matrices round otherwise where memory is not aligned as fresh tensors are
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  (no mapping)
            stored = json.loads((file.metadata() or {})["bundle"])
        if stored["digest"] != _digest(tensors, stored["notes"]):
            raise InvalidValueError("its content does not match its checksum")
        return Bundle(tensors, json.loads(stored["notes"]))
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFileError(
            f"{path} cannot be read ({reason}): it is damaged. Remove it, and --resume does that part again"
        ) from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Safetensors checks lengths only; this finds a changed byte too."""
    found = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        found.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        found.update(tensors[key].reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
