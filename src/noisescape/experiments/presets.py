"""Presets by name: an experiment's constants at one size."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from noisescape.errors import InvalidValueError

Config = TypeVar("Config")


def preset_named(presets: Mapping[str, Config], name: str, changes: Mapping[str, Any]) -> Config:
    """The preset with some constants changed; changes that are None are none.

    Raises:
        ValueError: no such preset, or a constant out of range.
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise InvalidValueError(f"unknown preset '{name}'{hint} known: {', '.join(presets)}")
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(presets[name], **given)  # type: ignore[type-var]
