"""JSON and Parquet files that hold a checksum of their own content, as bundles of tensors do.

It is of what a file says, not of its bytes: another indentation, or the line breaks of another system, are no
damage, while any other number, name or word is. Files of earlier versions have none and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from noisescape.errors import CorruptFileError
from noisescape.runs.storage import atomic_path, require_regular, write_text
from noisescape.runs.strict_json import strict_json

KEY = "sha256"
"""The last entry of a JSON object; in Parquet, of the schema's metadata."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, whole or not at all."""
    found = json.loads(strict_json(value))
    write_text(path, strict_json({**found, KEY: _digest(found)}))


def read_json(path: Path, mend: str, *, signed: bool = False) -> dict[str, Any]:
    """The object that :func:`write_json` wrote, without its checksum.

    Args:
        path: of the file.
        mend: what the user is to do where it is damaged.
        signed: whether it must have its checksum.

    Raises:
        CorruptFileError: it cannot be read, holds something else, or says something else than was written.
    """
    value = signed_json(path, mend)
    stored = value.pop(KEY, None)
    _check(path, mend, stored, stored and _digest(value), signed)
    return value


def signed_json(path: Path, mend: str) -> dict[str, Any]:
    """The object as it is in the file, with a checksum or without, which is not looked at."""
    try:
        require_regular(path)
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:  # what nests too deeply
        reason = " ".join(str(error).split())
        raise CorruptFileError(f"{path} cannot be read as JSON ({reason}): {mend}") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds a {type(value).__name__}, not an object: {mend}")
    return value


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table of numbers and text as Parquet with its checksum, whole or not at all."""
    signed = table.replace_schema_metadata({KEY: _digest(table.to_pydict())})
    with atomic_path(path) as temporary:
        pq.write_table(signed, temporary, compression="zstd")


def read_table(path: Path, mend: str, *, signed: bool = False) -> pa.Table:
    """The table that :func:`write_table` wrote, without its checksum; arguments and errors as of `read_json`."""
    try:
        require_regular(path)
        # not pq.read_table, which takes a parent directory named "lr=0.1" for a partition and adds a column
        with pq.ParquetFile(path) as file:
            table = file.read()
        table.validate(full=True)
        stored = (table.schema.metadata or {}).get(KEY.encode())
        found = stored and _digest(table.to_pydict()).encode()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFileError(f"{path} is damaged ({reason}): {mend}") from error
    _check(path, mend, stored, found, signed)
    return table.replace_schema_metadata(None)


def _digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a value in Python's own JSON: names and values in their order, floats to the last bit."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _check(path: Path, mend: str, stored: object, found: object, signed: bool) -> None:
    if stored is None and signed:
        raise CorruptFileError(f"{path} is damaged (its checksum is missing): {mend}")
    if stored != found:
        raise CorruptFileError(f"{path} is damaged (its content does not match its checksum): {mend}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
