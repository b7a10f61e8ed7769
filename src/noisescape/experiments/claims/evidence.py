"""A run as the judges see it: its curves, and whether its noises were of the trace they should have."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from noisescape.experiments.constants import NOISELESS
from noisescape.experiments.curves import Curves
from noisescape.experiments.statistics import mean_over
from noisescape.runs.run import Run

SAME_TRACE = (0.8, 1.25)
"""An injected trace within these shares of its target counts as matched."""


class Evidence:
    """A complete run, asked for one number of every seed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: dict[str, Any] = run.info["config"]
        self.summary = run.summary()

    @property
    def seeds(self) -> int:
        """How many repetitions."""
        return int(self.config["seeds"])

    @cached_property
    def curves(self) -> Curves:
        """What was recorded, by phase, dynamics and metric."""
        return Curves(self.run.metrics().to_pylist(), self.seeds)

    def last(self, phase: str, dynamics: str, metric: str) -> list[float]:
        """The value at the last step of the run, for every seed."""
        return self.curves.at(int(self.config["steps"]), phase, dynamics, metric)

    def ran(self, dynamics: str) -> bool:
        """Whether the run has that dynamics."""
        return dynamics in self.config["dynamics"]

    def trace_ratio(self, phase: str, dynamics: str) -> list[float]:
        """Injected over target trace, summed along the trajectory at the same steps, for every seed.

        NaN where no step has both.
        """
        ratios = []
        both = (self.curves.of(phase, dynamics, metric) for metric in ("injected", "trace_target"))
        for injected, target in zip(*both, strict=True):
            common = [
                step
                for step, value in injected.items()
                if math.isfinite(value) and math.isfinite(target.get(step, math.nan))
            ]
            total = sum(target[step] for step in common)
            ratios.append(sum(injected[step] for step in common) / total if total else math.nan)
        return ratios

    def trace_veto(self, phase: str, *dynamics: str) -> str | None:
        """Why these noises are not shown to be of their target's trace; None if they are."""
        reasons = (self._trace_veto(phase, name) for name in dynamics if name not in NOISELESS)
        return "; ".join(filter(None, reasons)) or None

    def _trace_veto(self, phase: str, name: str) -> str | None:
        ratios = self.trace_ratio(phase, name)
        missing = sum(not math.isfinite(ratio) for ratio in ratios)
        if missing:
            where = "" if missing == len(ratios) else f" in {missing} of {len(ratios)} seeds"
            return f"the injected trace of {name} was not measured{where}"
        low, high = mean_over(ratios).interval()
        least, most = SAME_TRACE
        if least <= low and high <= most:
            return None
        if len(ratios) < 2:
            return f"one seed shows nothing of the injected trace of {name}"
        measured = f"{name} was injected at {low:.2g} to {high:.2g} times its target trace"
        return measured if high < least or low > most else f"too few seeds to show the trace of {name}: {measured}"
