"""The precision of estimates: that of their operands, for which linear algebra must exist."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

from noisescape.errors import InvalidTypeError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """No autocast in here: it would silently turn matrix products into bfloat16 or float16."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, run without autocast."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with without_autocast():
            return function(*args, **kwargs)

    return call


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Refuse dtypes without QR and eigenvalues.

    Raises:
        TypeError: neither float32 nor float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InvalidTypeError(
            f"{name} is of {dtype}, for which there is no QR and no eigenvalue solver; build it from float32 "
            "tensors: .to(torch.float32) the model or risk, or the matrix, that it is made of"
        )
