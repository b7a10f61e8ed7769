"""The precision of estimates: that of their operands, for which linear algebra must exist."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, kind_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_TF32 = contextvars.ContextVar("TF32", default=False)


@contextlib.contextmanager
def at_full_precision() -> Iterator[None]:
    """In here matrix products and convolutions round as their operands' dtype does.

    No autocast, which would silently make them bfloat16 or float16. Nor are float32 operands rounded to fewer bits,
    as PyTorch does for convolutions on a GPU unless told otherwise (TF32, ten bits of mantissa), and for matrix
    products after ``torch.set_float32_matmul_precision("high")``.
    """
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if not _TF32.get():
            by_operation = hasattr(torch.backends.cudnn, "conv")  # since PyTorch 2.9
            stack.enter_context(_whole_float32() if by_operation else _tf32(allowed=False))
        yield


@contextlib.contextmanager
def in_tf32() -> Iterator[None]:
    """In here a GPU may round the operands of float32 products and convolutions to TF32: as most people train.

    For trajectories, which are of the same kind either way, not for what is measured along them.
    """
    token = _TF32.set(True)
    try:
        with _tf32(allowed=True):
            yield
    finally:
        _TF32.reset(token)


@contextlib.contextmanager
def _whole_float32() -> Iterator[None]:
    before = [(each, each.fp32_precision) for each in _operations()]
    coarse = [each for each, precision in before if precision in ("tf32", "bf16")]
    products = None
    if any(each in coarse for each in _matrix_products()):
        with contextlib.suppress(RuntimeError):  # it was set for the operation alone
            products = torch.get_float32_matmul_precision()
    try:
        if products is not None:  # both must be set, or products on a GPU are refused
            torch.set_float32_matmul_precision("highest")
        for operation in coarse:
            operation.fp32_precision = "ieee"
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for operation, precision in before:
            if products is not None or operation in coarse:
                operation.fp32_precision = precision


def _operations() -> tuple[Any, ...]:
    """Those whose float32 operands may be rounded."""
    gpu: Any = torch.backends.cudnn
    cpu: Any = torch.backends.mkldnn
    return *_matrix_products(), gpu.conv, gpu.rnn, cpu.conv, cpu.rnn


def _matrix_products() -> tuple[Any, Any]:
    """Those of a GPU and of a CPU."""
    cpu: Any = torch.backends.mkldnn
    return torch.backends.cuda.matmul, cpu.matmul


@contextlib.contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    """Of products and convolutions on a GPU."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


def full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, run :func:`at_full_precision`."""

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with at_full_precision():
            return function(*args, **kwargs)

    return call


def check_tensor(given: object, name: str) -> None:
    """Refuse what an operator cannot be made of.

    Raises:
        TypeError: no floating-point tensor.
    """
    if not isinstance(given, Tensor) or not given.is_floating_point():
        found = given.dtype if isinstance(given, Tensor) else kind_of(given)
        raise InvalidTypeError(f"{name} must be a floating-point torch.Tensor, not {found}")


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
