"""Runs of one experiment with the same constants, their seeds taken together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from noisescape.errors import InvalidValueError
from noisescape.experiments.curves import Curves
from noisescape.runs.run import Run, strict_json

FREE = ("seeds", "seed", "data_dir", "device", "dynamics")
"""The constants that runs may differ in and still be pooled: which seeds, where, and which arms."""
_OF_ONE_SEED = "images and labels of seed "


class Pool:
    """Complete runs that differ at most in the constants of :data:`FREE`.

    Seeds count in the order of root seed, then repetition, in whatever order the runs were made or given: who adds
    seeds to a sequence of looks takes larger root seeds.

    Args:
        runs: at least one; several only if all are divided into seeds.

    Raises:
        ValueError: the same repetition of the same root seed in two of them. Counting it twice would make intervals
            too narrow; to drop one would be a choice between two results.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self.config: dict[str, Any] = self.runs[0].info["config"]
        seen: dict[tuple[int, int], int] = {}
        for index, run in enumerate(self.runs):
            root = int(run.info["seed"])
            for repetition in range(int(run.info["config"].get("seeds", 0))):
                other = seen.setdefault((root, repetition), index)
                if other != index:
                    raise InvalidValueError(
                        f"{self.runs[other].path} and {run.path} both hold seed {root}, repetition {repetition}, "
                        f"of '{run.info['experiment']}' with the same constants: give one of them, or run other "
                        "seeds (--seed)"
                    )
        self.places = sorted(seen)
        """(root seed, repetition) of every seed."""
        self._places = [(seen[key], key[1]) for key in self.places]
        self._curves: dict[tuple[str, ...], Curves] = {}

    @property
    def seeds(self) -> int:
        """How many repetitions, of all runs."""
        return len(self._places)

    @cached_property
    def dynamics(self) -> list[tuple[str, ...]]:
        """Those of every seed's run."""
        ran = [tuple(run.info["config"].get("dynamics", ())) for run in self.runs]
        return [ran[index] for index, _ in self._places]

    def curves(self, by: tuple[str, ...]) -> Curves:
        """What was recorded, by the values of these columns, seeds counted through all runs."""
        if by not in self._curves:
            self._curves[by] = Curves(self.rows, self.seeds, by)
        return self._curves[by]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What was recorded, seeds counted through all runs."""
        number = {place: count for count, place in enumerate(self._places)}
        return [
            {**row, "seed": number[index, row["seed"]]}
            for index, run in enumerate(self.runs)
            for row in run.metrics().to_pylist()
        ]


def pooled(runs: Sequence[Run]) -> list[Pool]:
    """The runs in pools, in the order of their first ones; a run that is not divided into seeds is its own."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        alone = "seeds" not in run.info["config"]
        groups.setdefault((len(groups),) if alone else _constants(run), []).append(run)
    return [Pool(group) for group in groups.values()]


def _constants(run: Run) -> str:
    """All that runs must share, as text: constants, and the data that their images were taken from."""
    info = run.info
    config = {key: value for key, value in info["config"].items() if key not in FREE}
    sources = {key: value for key, value in info.get("data", {}).items() if not key.startswith(_OF_ONE_SEED)}
    return strict_json(
        {"experiment": info["experiment"], "config": sorted(config.items()), "data": sorted(sources.items())}
    )
