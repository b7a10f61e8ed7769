"""Numbers, seeds and switches that a call is given: what is not of its kind is refused before work starts.

A bool counts as no number, since ``batch_size=True`` is a slip, and a string as no switch, since ``"no"`` is true.
"""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
from typing import Any

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of

LARGEST = 2**63 - 1
"""Of what is counted, and of seeds: what 64 bits hold, so that torch and NumPy take it."""


def check_whole(name: str, value: Any, least: int = 1, most: int = LARGEST) -> None:
    """Refuse anything but an int, Python's or NumPy's, within ``least`` .. ``most``.

    Raises:
        TypeError: no int.
        ValueError: out of range.

    >>> check_whole("steps", 1e4)
    Traceback (most recent call last):
    noisescape.errors.InvalidTypeError: steps must be an int, not 10000.0; write 10000
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        mend = f"; write {value:.0f}" if isinstance(value, float) and value.is_integer() else ""
        raise InvalidTypeError(f"{name} must be an int, not {_shown(value)}{mend}") from None
    if whole < least:
        raise InvalidValueError(f"{name} must be at least {least}, not {whole}")
    if whole > most:
        raise InvalidValueError(f"{name} must be at most {most}, not {whole}")


def check_number(name: str, value: Any) -> None:
    """Refuse anything but a number, which may be NaN or infinite.

    Raises:
        TypeError: no number; a tensor or an array with dimensions.
    """
    if not _is_number(value):
        raise InvalidTypeError(f"{name} must be a number, not {_shown(value)}")


def check_real(name: str, value: Any, least: float = -math.inf) -> None:
    """Refuse anything but a finite number of at least ``least``.

    Raises:
        TypeError: no number.
        ValueError: NaN, infinite or below ``least``.
    """
    check_number(name, value)
    if not value >= least:
        bound = "a number" if math.isinf(least) else f"at least {least:g}"
        raise InvalidValueError(f"{name} must be {bound}, not {_shown(value)}")
    if not math.isfinite(value):
        raise InvalidValueError(f"{name} must be finite, not {_shown(value)}")


def check_positive(name: str, value: Any) -> None:
    """Refuse anything but a finite number over 0. Raises as :func:`check_real`."""
    if _is_number(value) and not value > 0:
        raise InvalidValueError(f"{name} must be positive, not {_shown(value)}")
    check_real(name, value)


def check_level(name: str, value: Any) -> None:
    """Refuse anything but a number strictly between 0 and 1. Raises as :func:`check_real`."""
    check_real(name, value)
    if not 0 < value < 1:
        raise InvalidValueError(f"{name} lies strictly between 0 and 1, not {_shown(value)}")


def check_seed(value: Any, name: str = "seed") -> None:
    """Refuse anything but an int that a generator of every library takes. Raises as :func:`check_whole`."""
    check_whole(name, value, 0)


def check_flag(name: str, value: Any) -> None:
    """Refuse anything but True and False.

    Raises:
        TypeError: something else, whatever its truth.
    """
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # NumPy's
        raise InvalidTypeError(f"{name} must be True or False, not {_shown(value)}")


def _is_number(value: Any) -> bool:
    """Python's, NumPy's, or one in a tensor without dimensions."""
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool)
    return getattr(value, "shape", None) == () and getattr(value, "is_floating_point", bool)()


def _shown(value: Any) -> str:
    """On one line, however large it is."""
    if value is None or isinstance(value, (numbers.Number, str)):
        return reprlib.repr(value)
    return kind_of(value)
