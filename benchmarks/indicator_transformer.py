"""Row 1b, of a network a hundred times as large: Tr(HΣ) to 1 % of a transformer in training."""

from __future__ import annotations

from benchmarks.harness import Outcome
from benchmarks.indicator import at_place, xtrace_in_part
from benchmarks.problems import transformer_in_training

SEEDS = 500
RIVAL_SEEDS = 4
"""Their orthogonal bases have a million rows: a seed takes most of a minute."""
REPEATS = 5


def run() -> Outcome:
    """Of the rivals XTrace alone, some of whose products are timed: half an hour."""
    outcome = Outcome()
    outcome.figures |= at_place(
        outcome,
        " of a transformer",
        transformer_in_training(),
        xtrace_in_part,
        seeds=SEEDS,
        rival_seeds=RIVAL_SEEDS,
        repeats=REPEATS,
        target=60,
    )
    return outcome
