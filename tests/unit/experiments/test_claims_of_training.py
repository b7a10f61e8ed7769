"""Claims on training from initialisation at one training loss: what is compared, censored and needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy import stats

from claim_runs import CASES, CLAIM, LEVEL, STEPS, Rows, at_level, written
from noisescape.experiments.claims import Evidence, Result, ledger
from noisescape.experiments.statistics import seeds_for

PAIR = ("sgd", "gld-diagonal")


def judged(name: str, path: Path, rows: Rows, dynamics: Sequence[str], seeds: int) -> list[Result]:
    config = {"seeds": seeds, "steps": STEPS, "dynamics": [*dynamics], "level": LEVEL}
    return CLAIM[name].judge(Evidence.of(written(path, "cifar10", config, rows)))


def pair_rows(gains: Sequence[float], missed: Sequence[int]) -> Rows:
    """SGD over diagonal noise; in the seeds ``missed`` SGD did not come down to the level."""
    return [
        entry
        for seed, gain in enumerate(gains)
        for entry in (
            *at_level(seed, "sgd", 0.5 + gain, 1e-4, reached=float(seed not in missed)),
            *at_level(seed, "gld-diagonal", 0.5, 1e-4),
        )
    ]


GAINS = (0.03, 0.02, 0.025, 0.02, 0.03, 0.025)


@pytest.mark.parametrize(("missed", "vetoed"), [((), False), ((2,), False), ((2, 4), True)])
def test_more_than_a_fifth_of_the_seeds_censored_are_a_veto(
    missed: tuple[int, ...], vetoed: bool, tmp_path: Path
) -> None:
    [found] = judged("accuracy-order", tmp_path / "run", pair_rows(GAINS, missed), PAIR, 6)
    kept = [0.0 if seed in missed else gain for seed, gain in enumerate(GAINS)]
    assert found.effect == pytest.approx(sum(kept) / 6), "one that missed counts as no difference"
    assert (found.n, found.verdict) == (6, "undecided" if vetoed else "supported")
    why = "sgd did not come down to the training loss in 2 of 6 seeds" if vetoed else None
    assert found.veto == why


def test_a_dynamics_that_left_nothing_is_censored(tmp_path: Path) -> None:
    rows = [entry for entry in pair_rows(GAINS, ()) if (entry["phase"], entry["seed"]) != ("matched", 1)]
    [found] = judged("accuracy-order", tmp_path / "run", rows, PAIR, 6)
    assert found.effect == pytest.approx((sum(GAINS) - GAINS[1]) / 6)


def test_that_nothing_differs_is_not_shown_by_what_got_stuck(tmp_path: Path) -> None:
    """One seed of twelve, which would count as no difference."""

    def rows(missed: int) -> Rows:
        return [
            entry
            for seed in range(12)
            for entry in (
                *at_level(seed, "gld-dynamic", 0.5 + 0.001 * (-1) ** seed, reached=float(seed != missed)),
                *at_level(seed, "gd", 0.5),
            )
        ]

    dynamics = ("gld-dynamic", "gd")
    [whole] = judged("isotropic-as-gd", tmp_path / "whole", rows(-1), dynamics, 12)
    [found] = judged("isotropic-as-gd", tmp_path / "stuck", rows(7), dynamics, 12)
    assert whole.verdict == "supported"
    assert (found.verdict, found.veto) == (
        "undecided",
        "gld-dynamic did not come down to the training loss in 1 of 12 seeds",
    )


def test_a_seed_with_a_censored_dynamics_has_no_correlation(tmp_path: Path) -> None:
    names = ("gd", "sgd", "gld-full")
    rows = [
        entry
        for seed in range(6)
        for place, name in enumerate(names)
        for entry in at_level(seed, name, 0.5 - 0.1 * place, 0.1 + place, reached=float((seed, place) != (3, 1)))
    ]
    [found] = judged("flatter-generalises", tmp_path / "run", rows, names, 6)
    # the five others have the correlation −1, which of three pairs counts as −0.75
    assert found.effect == pytest.approx(math.tanh(5 * math.atanh(-0.75) / 6))
    assert found.veto is None


def test_the_remark_has_the_deviation_and_the_seeds_that_a_point_needs(tmp_path: Path) -> None:
    gains = (0.05, -0.01, 0.02, 0.0)
    [found] = judged("accuracy-order", tmp_path / "run", pair_rows((*gains, 0.7), (4,)), PAIR, 5)
    deviation = float(stats.tstd(gains))
    needed = seeds_for(0.01, deviation)
    assert found.remark == (
        f"standard deviation {100 * deviation:.1f} points: {needed} seeds find one point with a power of 80 %"
    )
    assert needed > 50


def test_without_a_level_a_run_says_nothing_of_the_loss_that_it_was_not_brought_to(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.claim == "accuracy-order" and case.level is None)
    findings = ledger([case.run(tmp_path / "run", case.verdicts["supported"])])
    assert findings
    assert {finding.claim.name for finding in findings} <= {"accuracy-order", "flatter-generalises"}
    assert all(finding.result.remark == "" for finding in findings)


def test_all_of_it_is_exploratory() -> None:
    assert all(
        CLAIM[name].exploratory
        for name in ("accuracy-order", "isotropic-as-gd", "flatter-from-initialisation", "flatter-generalises")
    )
