"""Which cases of a test are quick, and which run with ``-m slow`` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

Parameters = type(pytest.param())


def quick(first: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """Cases for ``parametrize``: ``first`` as they are, then those of ``others`` that are not among them, slow.

    A case is what ``parametrize`` takes: a value, a tuple of several, or a ``pytest.param``, which keeps its name
    and its marks. A single value that is a tuple itself needs a ``pytest.param`` around it.
    """
    first = list(first)
    known = [_values(case) for case in first]
    return [*first, *(_slow(case) for case in others if _values(case) not in known)]


def _values(case: Any) -> tuple[Any, ...]:
    if isinstance(case, Parameters):
        return case.values
    return case if isinstance(case, tuple) else (case,)


def _slow(case: Any) -> Any:
    marks, name = (case.marks, case.id) if isinstance(case, Parameters) else ((), None)
    return pytest.param(*_values(case), marks=[*marks, pytest.mark.slow], id=name)
