"""What models take and give: tensors in nested sequences and mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def tensors(nested: Any) -> Iterator[Tensor]:
    """The tensors within, in order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from tensors(value)
    elif isinstance(nested, Sequence) and not isinstance(nested, (str, bytes)):
        for value in nested:
            yield from tensors(value)
