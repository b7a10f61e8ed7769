"""What was recorded in a run, as curves over steps, one a seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Curves:
    """Tidy rows by the curve that they belong to.

    Args:
        rows: with the columns ``seed``, ``step``, ``value`` and those of ``by``.
        seeds: repetitions, counted from 0.
        by: the columns whose values name a curve.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], seeds: int, by: tuple[str, ...] = ("phase", "dynamics", "metric")
    ) -> None:
        self._seeds: Sequence[int] = range(seeds)
        self._found: dict[tuple[Any, ...], dict[int, dict[int, float]]] = {}
        for row in rows:
            of_seeds = self._found.setdefault(tuple(row[column] for column in by), {})
            of_seeds.setdefault(row["seed"], {})[row["step"]] = row["value"]

    @property
    def names(self) -> list[tuple[Any, ...]]:
        """The values of the columns ``by``, sorted."""
        return sorted(self._found)

    def only(self, seeds: Sequence[int]) -> Curves:
        """The same curves of these repetitions, in this order."""
        chosen = Curves((), 0)
        chosen._seeds, chosen._found = seeds, self._found
        return chosen

    def of(self, *name: Any) -> list[dict[int, float]]:
        """Step ↦ value in the order of steps, for every seed; empty where nothing was recorded."""
        found = self._found.get(name, {})
        return [dict(sorted(found.get(seed, {}).items())) for seed in self._seeds]

    def at(self, step: int, *name: Any) -> list[float]:
        """One value a seed, NaN for those that stopped before."""
        return [curve.get(step, math.nan) for curve in self.of(*name)]
