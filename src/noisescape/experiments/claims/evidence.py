"""Pooled runs as the judges see them: curves of every seed, and whether noises were of their target's trace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noisescape.experiments.claims.pool import Pool
from noisescape.experiments.constants import NOISELESS
from noisescape.experiments.curves import Curves
from noisescape.experiments.statistics import mean_over
from noisescape.linops import Estimate
from noisescape.runs.run import Run

SAME_TRACE = (0.8, 1.25)
"""An injected trace within these shares of its target counts as matched."""


@dataclass(frozen=True)
class Evidence:
    """Some seeds of a pool of runs, asked for one number of every seed.

    Attributes:
        pool: the runs.
        picked: which of its seeds.
    """

    pool: Pool
    picked: tuple[int, ...]

    @classmethod
    def of(cls, *runs: Run) -> Evidence:
        """All seeds of these runs, which must have the same constants."""
        return cls.whole(Pool(runs))

    @classmethod
    def whole(cls, pool: Pool) -> Evidence:
        """All seeds of a pool."""
        return cls(pool, tuple(range(pool.seeds)))

    def having(self, *dynamics: str) -> Evidence:
        """The seeds in which all of these ran."""
        ran = self.pool.dynamics
        return Evidence(self.pool, tuple(seed for seed in self.picked if set(dynamics) <= set(ran[seed])))

    def first(self, count: int) -> Evidence:
        """The first so many of these seeds."""
        return Evidence(self.pool, self.picked[:count])

    def where(self, holds: Sequence[bool]) -> Evidence:
        """Those of these seeds for which it holds."""
        return Evidence(self.pool, tuple(itertools.compress(self.picked, holds)))

    @property
    def places(self) -> list[tuple[int, int]]:
        """(root seed, repetition) of every seed."""
        return [self.pool.places[seed] for seed in self.picked]

    @property
    def config(self) -> dict[str, Any]:
        """The constants that the runs share (and those of the first run that they do not)."""
        return self.pool.config

    @property
    def summary(self) -> dict[str, Any]:
        """Of a run that is not divided into seeds, and so not pooled."""
        [run] = self.pool.runs
        return run.summary()

    @property
    def seeds(self) -> int:
        """How many repetitions."""
        return len(self.picked)

    @property
    def dynamics(self) -> list[tuple[str, ...]]:
        """Those that ran, for every seed."""
        return [self.pool.dynamics[seed] for seed in self.picked]

    @property
    def curves(self) -> Curves:
        """What was recorded, by phase, dynamics and metric."""
        return self.curves_by("phase", "dynamics", "metric")

    def curves_by(self, *columns: str) -> Curves:
        """What was recorded, by the values of these columns."""
        return self.pool.curves(columns).only(self.picked)

    def last(self, phase: str, dynamics: str, metric: str) -> list[float]:
        """The value at the last step of the run, for every seed."""
        return self.curves.at(int(self.config["steps"]), phase, dynamics, metric)

    def trace_ratio(self, phase: str, dynamics: str) -> list[Estimate]:
        """Injected over target trace, each summed along the trajectory, for every seed.

        The standard error is that of a ratio of means over the measured steps. NaN where nothing was measured, and
        where a step has the one and not the other, or one that is not finite: what is missing may be what is off.
        """
        both = (self.curves.of(phase, dynamics, metric) for metric in ("injected", "trace_target"))
        return [_ratio_of_sums(injected, target) for injected, target in zip(*both, strict=True)]

    def trace_veto(self, phase: str, *dynamics: str) -> str | None:
        """Why these noises are not shown to be of their target's trace; None if they are."""
        reasons = (self._trace_veto(phase, name) for name in dynamics if name not in NOISELESS)
        return "; ".join(filter(None, reasons)) or None

    def _trace_veto(self, phase: str, name: str) -> str | None:
        ratios = self.trace_ratio(phase, name)
        missing = sum(not math.isfinite(ratio.value) for ratio in ratios)
        if missing or not ratios:
            where = "" if missing == len(ratios) else f" in {missing} of {len(ratios)} seeds"
            return f"the injected trace of {name} was not measured{where}"
        over_seeds = mean_over([ratio.value for ratio in ratios])
        # the interval over seeds alone would trust a few ratios that agree by chance
        reasons = (
            None if len(ratios) > 1 else f"one seed shows nothing of the injected trace of {name}",
            _outside(over_seeds.interval(), name, "seeds"),
            _outside(_over_steps(ratios).interval(), name, "measured steps"),
            _single(ratios, name),
        )
        return next(filter(None, reasons), None)


def _ratio_of_sums(injected: dict[int, float], target: dict[int, float]) -> Estimate:
    """Σ injected/Σ target with the standard error of a ratio of means; NaN unless both are of the same steps."""
    total = sum(target.values())
    whole = injected.keys() == target.keys() and all(map(math.isfinite, (*injected.values(), *target.values())))
    if not whole or not total > 0:
        return Estimate(math.nan, math.nan)
    value, steps = sum(injected.values()) / total, len(target)
    if steps == 1:
        return Estimate(value, math.inf, dof=1)
    scatter = sum((injected[step] - value * target[step]) ** 2 for step in target)
    return Estimate(value, math.sqrt(scatter * steps / (steps - 1)) / total, dof=steps - 1)


def _over_steps(ratios: list[Estimate]) -> Estimate:
    """The mean over seeds with the error that the scatter of the measured steps gives it."""
    count = len(ratios)
    error = math.sqrt(sum(ratio.stderr**2 for ratio in ratios)) / count
    return Estimate(sum(ratio.value for ratio in ratios) / count, error, dof=sum(ratio.dof for ratio in ratios))


def _outside(interval: tuple[float, float], name: str, over: str) -> str | None:
    """Why an interval that reaches out of SAME_TRACE shows no equal trace."""
    (low, high), (least, most) = interval, SAME_TRACE
    if least <= low and high <= most:
        return None
    measured = f"{name} was injected at {low:.2g} to {high:.2g} times its target trace"
    return measured if high < least or low > most else f"too few {over} to show the trace of {name}: {measured}"


def _single(ratios: list[Estimate], name: str) -> str | None:
    """Whether seeds are off, one each way, though their mean is not; at a level corrected for their number."""
    least, most = SAME_TRACE
    ends = [ratio.interval(1 - 0.05 / len(ratios)) for ratio in ratios]
    off = sum(high < least or low > most for low, high in ends)
    return f"{name} was injected off its target trace in {off} of {len(ratios)} seeds" if off else None
