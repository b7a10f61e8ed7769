"""Values as JSON that every reader of JSON takes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError


def strict_json(value: Mapping[str, Any]) -> str:
    """``value`` as JSON text; numbers that are not finite become null, for strict JSON has none."""
    return json.dumps(_plain(value, "value"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any, where: str) -> Any:
    """``value`` in JSON's own types; what is not finite becomes None, for strict JSON has no NaN."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InvalidTypeError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: give numbers, text, lists or dicts"
    )
