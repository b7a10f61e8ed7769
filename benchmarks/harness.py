"""What every benchmark shares: interleaved timing, a row of the result, the machine it was made on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "noisescape",
    "torch",
    "numpy",
    "scipy",
    "curvlinops-for-pytorch",
    "backpack-for-pytorch",
    "PyHessian",
    "hessian-eigenthings",
    "cockpit-for-pytorch",
    "gns-pytorch",
    "opacus",
    "transformers",
)


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        work: what was done.
        side: whose figure it is.
        against: what it is divided by.
        ratio: median seconds of ``side`` over those of ``against`` (or the other way round where ``better`` is
            ``"higher"``).
        better: ``"lower"`` or ``"higher"``.
        target: the bound set for it, if any.
        low, high: the ratio with the quartiles of both sides put against each other.
        note: what else there is to know.
    """

    work: str
    side: str
    against: str
    ratio: float
    better: str = "lower"
    target: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.better == "lower" else self.ratio >= self.target


@dataclass
class Outcome:
    """What a benchmark found: ratios, the seconds behind them, and figures that are no ratios."""

    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def compare(
        self, work: str, side: str, against: str, *, per: float = 1.0, better: str = "lower", **about: Any
    ) -> Row:
        """Add the ratio of two timed sides, by their labels in ``seconds``; ``per`` divides it."""
        upper, lower = self.seconds[side], self.seconds[against]
        if better == "higher":
            upper, lower = lower, upper
        row = Row(
            work,
            side,
            against,
            statistics.median(upper) / statistics.median(lower) / per,
            better,
            low=_quartile(upper, 0) / _quartile(lower, 2) / per,
            high=_quartile(upper, 2) / _quartile(lower, 0) / per,
            **about,
        )
        self.rows.append(row)
        return row

    def agree(self, what: str, found: torch.Tensor | float, wanted: torch.Tensor | float, tolerance: float) -> None:
        """Refuse to go on unless both sides computed the same thing.

        Raises:
            RuntimeError: they did not.
        """
        found, wanted = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
        error = float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))
        if not error <= tolerance:
            raise RuntimeError(
                f"{what}: the sides differ by {error:.2g}, over {tolerance:g}; there is nothing to time"
            )
        self.checks[what] = error


def interleaved(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side, ``repeats`` times, taking turns and starting with another each time."""
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            begun = clock()
            sides[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(clock() - begun)
    return seconds


def machine() -> dict[str, Any]:
    """Where and with what this runs."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def write(name: str, outcome: Outcome, took: float, folder: Path = RESULTS) -> Path:
    """Store an outcome as ``<name>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "benchmark": name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "took_seconds": round(took, 1),
        "machine": machine(),
        "rows": [asdict(row) | {"met": row.met} for row in outcome.rows],
        "checks": outcome.checks,
        "figures": outcome.figures,
        "median_seconds": {label: statistics.median(each) for label, each in outcome.seconds.items()},
        "seconds": outcome.seconds,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def _quartile(values: list[float], number: int) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[number] if len(values) > 1 else values[0]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or sys.platform
