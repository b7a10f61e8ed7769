"""Which cases of the tests that take longest are run each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

import quick_cases


@dataclass
class Item:
    """What is asked of a test collected."""

    nodeid: str
    markers: tuple[str, ...] = field(default=())

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.markers else None


def slow(items: list[Any], listed: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(quick_cases, "QUICK_CASES", listed)
    return [item.nodeid for item in quick_cases.slow_ones(items)]


def test_cases_are_spread_evenly_and_the_first_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(f"tests/a.py::test_it[{case}]") for case in range(7)] + [Item("tests/a.py::test_other")]
    found = slow(items, {"tests/a.py::test_it": 3}, monkeypatch)
    assert found == [f"tests/a.py::test_it[{case}]" for case in (1, 3, 5, 6)]


def test_more_than_there_are_is_all_of_them_and_none_is_a_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item("tests/a.py::test_it[x]"), Item("tests/b.py::test_it"), Item("tests/b.py::TestThat::test_it")]
    found = slow(items, {"tests/a.py::test_it": 5, "tests/b.py": 0}, monkeypatch)
    assert found == ["tests/b.py::test_it", "tests/b.py::TestThat::test_it"]


def test_those_marked_slow_are_no_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        Item("tests/a.py::test_it[0]", ("slow",)),
        Item("tests/a.py::test_it[1]"),
        Item("tests/a.py::test_it[2]"),
    ]
    assert slow(items, {"tests/a.py::test_it": 1}, monkeypatch) == ["tests/a.py::test_it[2]"]


def test_a_test_that_is_no_longer_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"tests/a.py::test_gone": 2, "tests/a.py::test_it": 1, "tests/not_collected.py::test_it": 1}
    monkeypatch.setattr(quick_cases, "QUICK_CASES", listed)
    items: list[Any] = [Item("tests/a.py::test_it[0]")]
    assert quick_cases.unknown_keys(items) == ["tests/a.py::test_gone"]
