"""Claims: every judge held to hand-made runs whose verdict is known beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from claim_runs import (
    CASES,
    CLAIM,
    LOGS,
    Case,
    by_case,
    row,
    traces,
    written,
)
from noisescape.experiments.claims import Evidence, Result, exceeds


def test_every_claim_has_its_hand_made_runs() -> None:
    assert {case.claim for case in CASES} | {"toy-order", "turned-basin", "isotropic-basin"} == CLAIM.keys()


@by_case()
@pytest.mark.parametrize("verdict", ["supported", "contradicted", "undecided"])
def test_the_verdict_is_the_known_one(case: Case, verdict: str, tmp_path: Path) -> None:
    values = case.verdicts[verdict]
    found = case.judged(tmp_path / "run", values)
    assert found.verdict == verdict
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.effect == pytest.approx(case.effect(np.mean(values)), abs=1e-12)
    assert found.low == pytest.approx(case.effect(low), abs=1e-12)
    assert found.high == pytest.approx(case.effect(high), abs=1e-12)
    assert found.n == 3
    assert found.note == "" or found.note.startswith("at least ")


def test_what_rises_does_not_fall(tmp_path: Path) -> None:
    """ "Does not flatten" has a margin on one side only."""
    case = next(case for case in CASES if case.claim == "not-flatter")
    assert case.judged(tmp_path / "run", (3.0, 2.0, 2.5)).verdict == "supported"


@by_case()
def test_one_seed_decides_nothing(case: Case, tmp_path: Path) -> None:
    found = case.judged(tmp_path / "run", case.verdicts["supported"][:1])
    assert found.verdict == "undecided"
    assert "one seed decides nothing" in found.note
    assert found.effect == pytest.approx(case.effect(case.verdicts["supported"][0]), abs=1e-12)
    assert (found.n, found.high) == (1, math.inf)


@by_case()
@pytest.mark.parametrize("verdict", ["supported", "contradicted"])
def test_a_seed_that_is_not_a_number_leaves_it_undecided(case: Case, verdict: str, tmp_path: Path) -> None:
    values = case.verdicts[verdict]
    found = case.judged(tmp_path / "run", [*values, math.nan, *values])
    assert found.verdict == "undecided"
    assert "diverged or not defined in 1 of 7 seeds" in found.note
    assert found.n == 6
    assert found.effect == pytest.approx(case.effect(np.mean(values)), abs=1e-12), "that of the others"


@by_case([case for case in CASES if len(case.dynamics) > 1])
def test_a_seed_that_diverged_leaves_it_undecided(case: Case, tmp_path: Path) -> None:
    """As simulate leaves it: a last NaN where it left every bound, and nothing at later steps."""
    values = case.verdicts["supported"]
    whole = case.run(tmp_path / "whole", values)
    rows = []
    for entry in whole.metrics().to_pylist():
        lost = (entry["seed"], entry["dynamics"]) == (1, case.dynamics[0])
        if lost and entry["step"] == 8:
            rows.append({**entry, "step": 7, "value": math.nan})
        elif not (lost and entry["step"] > 7):
            rows.append(entry)
    run = written(tmp_path / "diverged", case.experiment, whole.info["config"], rows)
    [found] = CLAIM[case.claim].judge(Evidence(run))
    assert (found.verdict, found.n) == ("undecided", 2)
    assert "diverged or not defined in 1 of 3 seeds" in found.note


OFF = {
    "below": ((0.49, 0.51, 0.5), "{} was injected at 0.48 to 0.52 times its target trace"),
    "above": ((1.99, 2.01, 2.0), "{} was injected at 2 to 2 times its target trace"),
    "perhaps below": (
        (0.6, 0.8, 1.0),
        "too few seeds to show the trace of {}: {} was injected at 0.3 to 1.3 times",
    ),
    "perhaps above": (
        (1.1, 1.4, 1.8),
        "too few seeds to show the trace of {}: {} was injected at 0.56 to 2.3 times",
    ),
    "all but shown": (
        (0.9, 1.0, 1.13),
        "too few seeds to show the trace of {}: {} was injected at 0.72 to 1.3 times",
    ),
    "not measured": ((math.nan,) * 3, "the injected trace of {} was not measured"),
    "in one seed not": ((1.0, math.nan, 1.0), "the injected trace of {} was not measured in 1 of 3 seeds"),
}


@by_case([case for case in CASES if case.noisy])
@pytest.mark.parametrize("off", OFF)
def test_noise_not_shown_to_be_of_its_trace_vetoes_any_verdict(case: Case, off: str, tmp_path: Path) -> None:
    ratios, veto = OFF[off]
    for verdict, values in case.verdicts.items():
        found = case.judged(tmp_path / verdict, values, ratios)
        assert found.verdict == "undecided"
        assert found.veto is not None
        assert found.veto.startswith(veto.replace("{}", case.dynamics[0]))
        assert found.effect == pytest.approx(case.effect(np.mean(values)), abs=1e-12)


@by_case([case for case in CASES if case.noisy])
@pytest.mark.parametrize("ratios", [(0.85, 0.85, 0.85), (1.2, 1.2, 1.2), (1.06, 0.97, 1.02)])
def test_noise_shown_to_be_of_its_trace_is_judged(
    case: Case, ratios: tuple[float, float, float], tmp_path: Path
) -> None:
    for verdict, values in case.verdicts.items():
        found = case.judged(tmp_path / verdict, values, ratios)
        assert (found.verdict, found.veto) == (verdict, None)


def test_more_seeds_show_what_three_do_not(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.claim == "flatter")
    values, ratios = case.verdicts["supported"], (0.9, 1.0, 1.13)
    assert case.judged(tmp_path / "three", values, ratios).veto is not None
    assert case.judged(tmp_path / "nine", values * 3, ratios * 3).veto is None


def test_a_veto_and_a_verdict_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="a veto leaves a claim undecided"):
        Result("supported", 1.0, 0.5, 1.5, 3, veto="one seed decides nothing")
    assert Result("supported", 1.0, 0.5, 1.5, 3, remark="at least 7").note == "at least 7"
    assert Result("undecided", 1.0, 0.5, 1.5, 3, veto="a", remark="b").note == "a; b"


def test_what_is_noted_decides_nothing() -> None:
    """The indicator's remark stands beside every verdict."""
    for verdict, values in LOGS.items():
        found = exceeds(values, 0.0)
        assert (found.verdict, found.veto, found.remark) == (verdict, None, "")
        assert replace(found, remark="at least 7").verdict == verdict
        assert exceeds(values, 0.0, veto="not measured").verdict == "undecided"


def test_the_trace_ratio_is_that_of_sums_over_common_steps(tmp_path: Path) -> None:
    rows = [
        *traces("escape", 0, "sgd", 0.5),
        row("escape", 1, "sgd", 0, "injected", 3.0),
        row("escape", 1, "sgd", 3, "injected", 1.0),
        row("escape", 1, "sgd", 0, "trace_target", 2.0),
        row("escape", 1, "sgd", 3, "trace_target", 8.0),
        row("escape", 2, "sgd", 3, "trace_target", 8.0),
    ]
    evidence = Evidence(written(tmp_path / "run", "digits", {"seeds": 3}, rows))
    assert evidence.trace_ratio("escape", "sgd") == pytest.approx([0.5, 0.4, math.nan], nan_ok=True)


@pytest.mark.parametrize("missing", ["injected", "trace_target"])
def test_noise_that_was_not_measured_is_not_taken_for_matched(missing: str, tmp_path: Path) -> None:
    """As in runs from before a metric had its name."""
    case = next(case for case in CASES if case.claim == "flatter")
    whole = case.run(tmp_path / "whole", case.verdicts["supported"])
    rows = [entry for entry in whole.metrics().to_pylist() if entry["metric"] != missing]
    run = written(tmp_path / "run", case.experiment, whole.info["config"], rows)
    [found] = CLAIM[case.claim].judge(Evidence(run))
    assert found.verdict == "undecided"
    assert found.veto == "the injected trace of sgd was not measured"
