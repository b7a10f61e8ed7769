"""Row 13: when Tr(HΣ) should not come from pairs of samples: the limits of ``linops/paired_samples.py``, varied.

On tables of all pairs, whose exact trace is their mean; every seed is a random order of the samples. There is
nothing to time: what counts is how often an interval holds, and how often pairs are used at all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Outcome, Row
from benchmarks.pair_table import PairedColumns, PairedCurvature
from noisescape.linops import paired_samples

COUNT = 200
SEEDS = 100
TOLERANCES = (0.01, 0.1)
LEVEL = 0.95
LIMITS: dict[str, tuple[float, ...]] = {
    "LEAST_SEEN": (0, 25, 100, 400),
    "LEAST_DOF": (0, 10, 30, 100),
    "MOST_ROUNDS": (16, 32, 64),
}


def run() -> Iterator[Outcome]:
    """Each limit by itself, the others as they are; what there is after each table."""
    outcome = Outcome()
    for name, make in TABLES.items():
        table = make(torch.Generator().manual_seed(0))
        table[range(COUNT), range(COUNT)] *= 3
        for rtol in TOLERANCES:
            found = {
                limit: {f"{value:g}": by_pairs(table, rtol, limit, value) for value in values}
                for limit, values in LIMITS.items()
            }
            outcome.figures[f"{name}, to {rtol:.0%}"] = found
            usual = found["LEAST_SEEN"][f"{paired_samples.LEAST_SEEN:g}"]
            if usual["used"]:
                work = f"intervals that hold: {name}, to {rtol:.0%}"
                note = f"used in {usual['used']:.0%}, {usual['rounds']:.1f} rounds, RMSE {usual['rmse']:.2%}"
                outcome.rows.append(Row(work, "pairs", "95 % of them", usual["holds"] / LEVEL, note=note))
        yield outcome


def by_pairs(table: Tensor, rtol: float, limit: str, value: float) -> dict[str, float]:
    """How often pairs are used where one limit has another value, and how good they are then."""
    exact = float(table.mean())
    usual = getattr(paired_samples, limit)
    setattr(paired_samples, limit, value)
    try:
        found = []
        for seed in range(SEEDS):
            curvature = PairedCurvature(table)
            estimate = paired_samples.by_pairs(
                curvature, PairedColumns(COUNT), rtol, 1000, torch.Generator().manual_seed(seed)
            )
            if estimate is not None:
                found.append((estimate, curvature.products))
    finally:
        setattr(paired_samples, limit, usual)
    if not found:
        return {"used": 0.0}
    errors = [estimate.value / exact - 1 for estimate, _ in found]
    intervals = [estimate.interval(LEVEL) for estimate, _ in found]
    return {
        "used": len(found) / SEEDS,
        "holds": statistics.fmean(low <= exact <= high for low, high in intervals),
        "rmse": statistics.fmean(error**2 for error in errors) ** 0.5,
        "rounds": statistics.fmean(rounds for _, rounds in found),
    }


# ---------------------------------------------------------------------- tables


def normals(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows, of columns and of pairs."""
    rows, columns = (torch.randn(COUNT, generator=generator).double() for _ in range(2))
    return rows, columns, torch.randn(COUNT, COUNT, generator=generator).double()


def even(interaction: float) -> Callable[[torch.Generator], Tensor]:
    """As of the small transformer: rows differ by 0.31, columns by 0.19, and a part of each pair's own."""

    def make(generator: torch.Generator) -> Tensor:
        rows, columns, own = normals(generator)
        return 1 + 0.31 * rows[:, None] + 0.19 * columns + interaction * own

    return make


def factors(sigma: float, of_pairs: float) -> Callable[[torch.Generator], Tensor]:
    """Rows, columns and pairs that differ by factors, with standard deviations of their logarithms."""

    def make(generator: torch.Generator) -> Tensor:
        rows, columns, own = normals(generator)
        return torch.exp(sigma * (rows[:, None] + columns) + of_pairs * own)

    return make


def classes(generator: torch.Generator) -> Tensor:
    """Ten classes; samples of one meet three times as strongly."""
    labels = torch.randint(10, (COUNT,), generator=generator)
    noise = 1 + 0.2 * torch.randn(COUNT, COUNT, generator=generator).double()
    return (1 + 2 * (labels[:, None] == labels).double()) * noise


def carried_by(share: float) -> Callable[[torch.Generator], Tensor]:
    """Nearly all of it by pairs of a share of the samples, as where a network has fitted the others."""

    def make(generator: torch.Generator) -> Tensor:
        sizes = torch.where(torch.arange(COUNT) < share * COUNT, 1.0, 0.001).double()
        return torch.outer(sizes, sizes) * (1 + 0.2 * torch.randn(COUNT, COUNT, generator=generator).double())

    return make


TABLES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "as of a transformer": even(0.18),
    "more of each pair's own": even(0.4),
    "factors, σ = 0.5": factors(0.5, 0.2),
    "ten classes": classes,
    **{f"carried by {share:.0%} of the samples": carried_by(share) for share in (0.05, 0.1, 0.2, 0.5)},
}
