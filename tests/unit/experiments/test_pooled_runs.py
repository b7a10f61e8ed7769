"""Runs that differ in their seeds are one sample; those that differ in anything else are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from claim_runs import CLAIM, STEPS, accuracy, toy, written
from noisescape.experiments.claims import Evidence, ledger
from noisescape.experiments.claims.pool import pooled
from noisescape.runs.run import Run

ARMS = ["as-if-small", "large-batch", "small-batch"]


def knob(path: Path, root: int, gaps: list[float], data: dict[str, str] | None = None, **constants: Any) -> Run:
    """A run of the noise knob from a root seed; the gap of each of its seeds."""
    config = {"seeds": len(gaps), "seed": root, "steps": STEPS, "dynamics": ARMS} | constants
    rows = [
        entry
        for seed, gap in enumerate(gaps)
        for name, value in (("large-batch", 0.5), ("small-batch", 0.5 + gap), ("as-if-small", 0.5))
        if name in config["dynamics"]
        for entry in accuracy("training", seed, name, value)
    ]
    return written(path, "noise-knob", config, rows, data=data)


def gaps(evidence: Evidence) -> list[float]:
    small, large = (evidence.last("training", name, "test_accuracy") for name in ("small-batch", "large-batch"))
    return [round(one - other, 6) for one, other in zip(small, large, strict=True)]


def test_seeds_are_pooled_in_the_order_of_root_seed_and_repetition(tmp_path: Path) -> None:
    late, early = knob(tmp_path / "late", 7, [0.03, 0.04]), knob(tmp_path / "early", 2, [0.01, 0.02, 0.05])
    for runs in ([late, early], [early, late]):
        assert gaps(Evidence.of(*runs)) == [0.01, 0.02, 0.05, 0.03, 0.04]
    [found] = [f for f in ledger([late, early]) if f.claim.name == "batch-gap"]
    values = [0.01, 0.02, 0.05, 0.03, 0.04]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.result.n, found.run, found.source) == (5, "late, early", "noise-knob")
    assert (found.result.effect, found.result.low, found.result.high) == pytest.approx((0.03, low, high))


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cuda"},
        {"data_dir": "elsewhere"},
        {"dynamics": ["small-batch", "large-batch"]},
    ],
)
def test_place_and_arms_do_not_part_runs(other: dict[str, Any], tmp_path: Path) -> None:
    runs = [knob(tmp_path / "one", 1, [0.01]), knob(tmp_path / "other", 2, [0.02], **other)]
    assert [f.result.n for f in ledger(runs) if f.claim.name == "batch-gap"] == [2]


@pytest.mark.parametrize("other", [{"lr": 0.2}, {"penalty": 2.0}, {"preset": "paper"}])
def test_runs_with_other_constants_are_findings_of_their_own(other: dict[str, Any], tmp_path: Path) -> None:
    runs = [knob(tmp_path / "one", 1, [0.01, 0.02]), knob(tmp_path / "other", 2, [0.02, 0.03], **other)]
    found = [f for f in ledger(runs) if f.claim.name == "batch-gap"]
    assert [(f.result.n, f.run) for f in found] == [(2, "one"), (2, "other")]
    assert [f.source for f in found] == [f"noise-knob ({tmp_path / name})" for name in ("one", "other")]


def test_runs_on_other_data_are_not_pooled_though_only_their_place_tells(tmp_path: Path) -> None:
    """A directory is no constant, but what lay in it is."""
    digits = {"train name": "digits", "images and labels of seed 0": "a"}
    runs = [
        knob(tmp_path / "one", 1, [0.01], digits),
        knob(tmp_path / "two", 2, [0.02], digits | {"images and labels of seed 0": "b"}),
        knob(tmp_path / "other", 3, [0.03], {"train name": "fashion_mnist"}, data_dir="data"),
        knob(tmp_path / "unknown", 4, [0.04]),
    ]
    assert [[run.path.name for run in pool.runs] for pool in pooled(runs)] == [
        ["one", "two"],
        ["other"],
        ["unknown"],
    ]


def test_a_dynamics_counts_in_the_seeds_only_in_which_it_ran(tmp_path: Path) -> None:
    few = knob(tmp_path / "few", 1, [0.01, 0.02], dynamics=ARMS[1:])
    more = knob(tmp_path / "more", 2, [0.03, 0.04, 0.05])
    counted = {f.claim.name: f.result.n for f in ledger([few, more])}
    assert (counted["batch-gap"], counted["knob-over-large"]) == (5, 3)
    evidence = Evidence.of(few, more)
    assert gaps(evidence.having("as-if-small")) == [0.03, 0.04, 0.05]
    assert gaps(evidence.first(3).having("as-if-small")) == [0.03]
    assert gaps(evidence.having("as-if-small").first(2)) == [0.03, 0.04]
    assert evidence.having("isotropic").seeds == 0


@pytest.mark.parametrize("others", [[0.01], [0.01, 0.02, 0.03]])
def test_the_same_seed_twice_is_refused(others: list[float], tmp_path: Path) -> None:
    """Also in a run of other arms or length: which of two results to believe is not the ledger's to choose."""
    runs = [
        knob(tmp_path / "one", 1, [0.01, 0.02]),
        knob(tmp_path / "between", 2, [0.01]),
        knob(tmp_path / "two", 1, others, dynamics=ARMS[1:]),
    ]
    message = (
        f"{tmp_path / 'one'} and {tmp_path / 'two'} both hold seed 1, repetition 0, of 'noise-knob' with the same "
        "constants: give one of them, or run other seeds"
    )
    with pytest.raises(ValueError, match=message):
        ledger(runs)
    assert ledger(runs[:2])
    assert ledger([runs[0], knob(tmp_path / "other", 1, others, steps=STEPS + 1)]), (
        "with other constants it is another"
    )


def test_runs_that_have_no_seeds_are_never_pooled(tmp_path: Path) -> None:
    runs = [run for name in ("one", "two") for run in toy(tmp_path / name).pool.runs]
    assert [f.run for f in ledger(runs) if f.claim.name == "toy-order"] == ["one", "two"]


def test_a_pool_of_optimisers_counts_seeds_through_all_runs(tmp_path: Path) -> None:
    """The one-hidden-layer runs, whose curves go by other columns."""

    def hidden(name: str, root: int, logs: list[float]) -> Run:
        rows = [
            {"width": 32, "optimiser": "gd", "seed": seed, "step": 10, "metric": "anisotropy", "value": value}
            for seed, value in enumerate(logs)
        ]
        return written(tmp_path / name, "one-hidden-layer", {"seeds": len(logs), "seed": root}, rows)

    [found] = ledger([hidden("one", 1, [2.0, 4.0]), hidden("two", 2, [8.0])])
    assert (found.claim, found.result.n) == (CLAIM["indicator-one-hidden-layer"], 3)
    assert found.result.effect == pytest.approx(4.0)
