"""What the runs at matched loss ended in, read from their rows: for the summary, the judges and the figures alike.

In every seed an arm has one run or several that differ in their noise alone. Gradient descent's figures stand
beside those of each run, as ``gd_sharpness`` say: it was taken to that run's own loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noisescape.experiments.curves import Curves

COLUMNS = ("phase", "dynamics", "metric", "replica")
"""That the curves are named by."""
_METRICS = (
    *("reached", "loss", "sharpness", "relative_sharpness", "largest_eigenvalue", "parameter_norm"),
    *("test_accuracy", "barrier", "quench_steps"),
)


@dataclass(frozen=True)
class End:
    """Where one run of an arm came to, and gradient descent at the same loss.

    Attributes:
        found: what was measured, by metric; NaN where it was not.
        descent: the same of gradient descent.
        settled: whether the minimum that it began in was at rest and stable.
    """

    found: Mapping[str, float]
    descent: Mapping[str, float]
    settled: bool

    @property
    def censored(self) -> bool:
        """Whether it or gradient descent did not come down to the level of loss, or began in no settled minimum."""
        return not (self.settled and self.found["reached"] == self.descent["reached"] == 1)

    @property
    def log_sharpness(self) -> float:
        """log(expected sharpness / gradient descent's)."""
        return self._log_ratio("sharpness")

    @property
    def log_eigenvalue(self) -> float:
        """log(λ₁ / gradient descent's)."""
        return self._log_ratio("largest_eigenvalue")

    @property
    def log_relative_sharpness(self) -> float:
        """The same with perturbations in proportion to the weights of each layer; NaN in runs before these."""
        return self._log_ratio("relative_sharpness")

    @property
    def log_norm(self) -> float:
        """log(‖θ‖ / gradient descent's); NaN in runs before this was measured."""
        return self._log_ratio("parameter_norm")

    @property
    def accuracy_gain(self) -> float:
        """Test accuracy minus gradient descent's, as a share of 1."""
        return self.found["test_accuracy"] - self.descent["test_accuracy"]

    @property
    def barrier(self) -> float:
        """Height of the loss on the straight segment from the minimum, over the higher of its ends."""
        return self.found["barrier"]

    def _log_ratio(self, metric: str) -> float:
        one, other = self.found[metric], self.descent[metric]
        return math.log(one) - math.log(other) if one > 0 and other > 0 else math.nan


def noise_seeds(arm: str, asked: int) -> int:
    """How often an arm runs from each minimum: SGD as often as asked for, the dearer ones once."""
    return asked if arm == "sgd" else 1


def ends(curves: Curves, config: Mapping[str, Any], arm: str, suffix: str = "") -> list[list[End]]:
    """The runs of an arm, for every seed: as many as it should have, those that left nothing included.

    Args:
        curves: named by `COLUMNS`.
        config: the run's constants.
        arm: not gradient descent.
        suffix: of the level of loss, `level_suffix`.
    """
    step = int(config["steps"])
    recorded = {replica for phase, name, _, replica in curves.names if (phase, name) == ("matched", arm)}
    should = noise_seeds(arm, int(config["noise_seeds"]))

    def figures(replica: int, prefix: str) -> list[dict[str, float]]:
        columns = [curves.at(step, "matched", arm, f"{prefix}{metric}{suffix}", replica) for metric in _METRICS]
        return [dict(zip(_METRICS, row, strict=True)) for row in zip(*columns, strict=True)]

    settled = [1 in curve.values() for curve in curves.of("minimum", "gd", "settled", 0)]
    by_run = [
        [End(*run) for run in zip(figures(replica, ""), figures(replica, "gd_"), settled, strict=True)]
        for replica in sorted(recorded | {*range(should)})
    ]
    return [[*own] for own in zip(*by_run, strict=True)]


def level_suffix(level: float, levels: Sequence[float]) -> str:
    """What the metrics of a level of loss end in: nothing at the first one, which decides."""
    return "" if level == levels[0] else f"@{level:g}"


def seed_means(seeds: Sequence[Sequence[End]], statistic: Callable[[End], float]) -> list[float]:
    """Mean of a statistic over the runs of each seed that have it; NaN for a seed in which none has."""
    means = []
    for own in seeds:
        known = [value for value in map(statistic, own) if math.isfinite(value)]
        means.append(sum(known) / len(known) if known else math.nan)
    return means


def of_reached(statistic: Callable[[End], float]) -> Callable[[End], float]:
    """The statistic of those that came to be compared; NaN for those censored."""
    return lambda end: math.nan if end.censored else statistic(end)
