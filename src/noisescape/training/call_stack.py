"""Whose method is running, where torch and transformers do not say."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import TypeVar

Kind = TypeVar("Kind")


def running(kind: type[Kind], depth: int, *, methods: Collection[str] | None = None) -> Kind | None:
    """The nearest object of a kind among those whose methods led here.

    Args:
        kind: its class.
        depth: frames looked through, from the caller's on.
        methods: names that count; None: any.
    """
    frame = inspect.currentframe()
    for _ in range(depth + 1):
        frame = frame and frame.f_back
        if frame is None:
            return None
        if methods is None or frame.f_code.co_name in methods:
            candidate = frame.f_locals.get("self")
            if isinstance(candidate, kind):
                return candidate
    return None
