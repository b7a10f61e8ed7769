"""Claims: every judge held to hand-made runs whose verdict is known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    Rows,
    by_case,
    row,
    written,
)
from noisescape.experiments.claims import Evidence, Result, exceeds
from noisescape.experiments.claims.evidence import _over_steps, _ratio_of_sums
from noisescape.experiments.claims.lab_catalogue import LAB_CLAIMS
from noisescape.experiments.statistics import mean_over


def test_every_claim_has_its_hand_made_runs() -> None:
    of_the_lab = {claim.name for claim in LAB_CLAIMS}  # test_claims_of_the_lab.py
    toys = {"toy-order", "turned-basin", "isotropic-basin"}
    assert {case.claim for case in CASES} | toys | of_the_lab == CLAIM.keys()


@by_case()
@pytest.mark.parametrize("verdict", ["supported", "contradicted", "undecided"])
def test_the_verdict_is_the_known_one(case: Case, verdict: str, tmp_path: Path) -> None:
    values = case.verdicts[verdict]
    found = case.judged(tmp_path / "run", values)
    assert found.verdict == verdict
    low, high = stats.t.interval(0.95, 2, loc=mean(case, values), scale=stats.sem([*map(case.scale, values)]))
    assert found.effect == pytest.approx(case.effect(mean(case, values)), abs=1e-12)
    assert found.low == pytest.approx(case.effect(low), abs=1e-12)
    assert found.high == pytest.approx(case.effect(high), abs=1e-12)
    assert found.n == 3
    assert (found.p < 0.05) == (verdict != "undecided"), "p tells what the interval tells"
    assert found.note == "" or found.note.startswith(("at least ", "standard deviation "))


def mean(case: Case, values: Sequence[float]) -> float:
    return float(np.mean([*map(case.scale, values)]))


@by_case()
def test_one_seed_decides_nothing(case: Case, tmp_path: Path) -> None:
    found = case.judged(tmp_path / "run", case.verdicts["supported"][:1])
    assert found.verdict == "undecided"
    assert "one seed decides nothing" in found.note
    assert found.effect == pytest.approx(case.effect(mean(case, case.verdicts["supported"][:1])), abs=1e-12)
    assert (found.n, found.high) == (1, case.effect(math.inf))
    assert math.isnan(found.p)


@by_case()
@pytest.mark.parametrize("verdict", ["supported", "contradicted"])
def test_a_seed_that_is_not_a_number_leaves_it_undecided(case: Case, verdict: str, tmp_path: Path) -> None:
    values = case.verdicts[verdict]
    found = case.judged(tmp_path / "run", [*values, math.nan, *values])
    assert found.verdict == "undecided"
    assert "diverged or not defined in 1 of 7 seeds" in found.note
    assert found.n == 6
    assert found.effect == pytest.approx(case.effect(mean(case, values)), abs=1e-12), "that of the others"


@by_case(
    [case for case in CASES if len(case.dynamics) > 1 and case.experiment != "matched-loss" and case.level is None]
)
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
    [found] = CLAIM[case.claim].judge(Evidence.of(run))
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


@by_case([case for case in CASES if case.noisy], quick_share=9)
@pytest.mark.parametrize("off", OFF)
def test_noise_not_shown_to_be_of_its_trace_vetoes_any_verdict(case: Case, off: str, tmp_path: Path) -> None:
    ratios, veto = OFF[off]
    for verdict, values in case.verdicts.items():
        found = case.judged(tmp_path / verdict, values, ratios)
        assert found.verdict == "undecided"
        assert found.veto is not None
        assert found.veto.startswith(veto.replace("{}", case.dynamics[0]))
        assert found.effect == pytest.approx(case.effect(mean(case, values)), abs=1e-12)


@by_case([case for case in CASES if case.noisy], quick_share=9)
@pytest.mark.parametrize("ratios", [(0.85, 0.85, 0.85), (1.2, 1.2, 1.2), (1.06, 0.97, 1.02)])
def test_noise_shown_to_be_of_its_trace_is_judged(
    case: Case, ratios: tuple[float, float, float], tmp_path: Path
) -> None:
    for verdict, values in case.verdicts.items():
        found = case.judged(tmp_path / verdict, values, ratios)
        assert (found.verdict, found.veto) == (verdict, None)


def test_more_seeds_show_what_three_do_not(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.claim == "accuracy-order")
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


def injected(ratios: Sequence[Sequence[float]]) -> Rows:
    """For every seed the injected over the target trace at steps 0, 3, 6 …; targets 2, 3, 4 …"""
    return [
        row("escape", seed, "gld-full", 3 * place, metric, (place + 2) * value)
        for seed, own in enumerate(ratios)
        for place, ratio in enumerate(own)
        for metric, value in (("injected", ratio), ("trace_target", 1.0))
    ]


def veto_of(path: Path, rows: Rows, seeds: int) -> str | None:
    return Evidence.of(written(path, "digits", {"seeds": seeds}, rows)).trace_veto("escape", "gld-full")


def test_the_trace_ratio_is_that_of_sums_with_the_error_of_a_ratio_of_means(tmp_path: Path) -> None:
    evidence = Evidence.of(written(tmp_path / "run", "digits", {"seeds": 1}, injected([(1.5, 0.6, 1.1)])))
    [found] = evidence.trace_ratio("escape", "gld-full")
    noises, targets = np.array([3.0, 1.8, 4.4]), np.array([2.0, 3.0, 4.0])
    ratio = noises.sum() / targets.sum()
    assert found.value == pytest.approx(ratio)
    assert found.stderr == pytest.approx(stats.sem(noises - ratio * targets) / targets.mean())
    assert found.dof == 2


def test_the_error_of_a_trace_ratio_is_that_of_repetitions() -> None:
    """20 steps of noise along two directions, ‖ε‖² = τ·χ²₂/2 with unlike targets τ, 4,000 times."""
    random = np.random.default_rng(0)
    targets = 1 + np.arange(20) / 10
    steps = dict(enumerate(targets))
    found = [_ratio_of_sums(dict(enumerate(targets * random.chisquare(2, 20) / 2)), steps) for _ in range(4000)]
    spread = np.std([ratio.value for ratio in found], ddof=1)
    assert np.mean([ratio.value for ratio in found]) == pytest.approx(1, abs=4 * spread / 4000**0.5)
    squares = np.array([ratio.stderr**2 for ratio in found])
    assert squares.mean() == pytest.approx(spread**2, abs=4 * squares.std() / 4000**0.5 + 0.03 * spread**2)


BROKEN = {
    "a step without its noise": [("escape", 1, 3, "injected", None)],
    "a step without its target": [("escape", 1, 3, "trace_target", None)],
    "noise that overflowed": [("escape", 1, 3, "injected", math.inf)],
    "noise that is not a number": [("escape", 1, 3, "injected", math.nan)],
    "no target but 0": [("escape", 1, step, "trace_target", 0.0) for step in (0, 3, 6, 9)],
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_missing_of_a_trace_is_not_passed_over(broken: str, tmp_path: Path) -> None:
    rows = injected([(1.01, 0.98, 1.0, 1.02)] * 3)
    assert veto_of(tmp_path / "whole", rows, 3) is None
    for phase, seed, step, metric, value in BROKEN[broken]:
        [place] = [
            entry for entry in rows if (entry["seed"], entry["step"], entry["metric"]) == (seed, step, metric)
        ]
        assert place["phase"] == phase
        if value is None:
            rows.remove(place)
        else:
            place["value"] = value
    assert veto_of(tmp_path / "broken", rows, 3) == (
        "the injected trace of gld-full was not measured in 1 of 3 seeds"
    )


def test_three_ratios_that_agree_by_chance_show_nothing(tmp_path: Path) -> None:
    """Each is known to ± 0.4 at best: that they lie within 0.04 of each other is luck."""
    seeds = [(0.2, 1.7, 1.1, 0.9), (1.9, 0.5, 0.7, 1.1), (0.3, 0.7, 2.0, 0.95)]
    evidence = Evidence.of(written(tmp_path / "run", "digits", {"seeds": 3}, injected(seeds)))
    values = [ratio.value for ratio in evidence.trace_ratio("escape", "gld-full")]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert 0.8 < low < high < 1.25, "by the seeds alone they would pass"
    veto = evidence.trace_veto("escape", "gld-full")
    assert veto is not None
    assert veto.startswith("too few measured steps to show the trace of gld-full: gld-full was injected at ")


@pytest.mark.parametrize("seeds", [2, 3, 40])
def test_one_measured_step_shows_nothing(seeds: int, tmp_path: Path) -> None:
    veto = veto_of(tmp_path / "run", injected([(1.0,)] * seeds), seeds)
    assert veto is not None
    assert veto.startswith("too few measured steps to show the trace of gld-full")


def test_seeds_that_are_off_one_each_way_are_not_matched_on_average(tmp_path: Path) -> None:
    """In none of them were noises of equal trace compared."""
    seeds = [[level * share for share in (0.98, 1.02) * 6] for level in (0.6, 1.4)] * 20
    evidence = Evidence.of(written(tmp_path / "run", "digits", {"seeds": 40}, injected(seeds)))
    low, high = mean_over([ratio.value for ratio in evidence.trace_ratio("escape", "gld-full")]).interval()
    assert 0.8 < low < high < 1.25, "on average they would pass"
    assert (
        evidence.trace_veto("escape", "gld-full") == "gld-full was injected off its target trace in 40 of 40 seeds"
    )


def test_noise_off_its_trace_passes_no_more_often_than_an_interval_may() -> None:
    """Noise along one direction at 1.4 times its trace, three seeds of 20 steps: some pass by the seeds alone."""
    random = np.random.default_rng(1)
    steps = dict.fromkeys(range(20), 1.0)
    passed = [0, 0]
    for _ in range(3000):
        draws = 1.4 * random.chisquare(1, (3, 20))
        ratios = [_ratio_of_sums(dict(enumerate(own)), steps) for own in draws]
        intervals = (mean_over([ratio.value for ratio in ratios]).interval(), _over_steps(ratios).interval())
        inside = [low >= 0.8 and high <= 1.25 for low, high in intervals]
        passed[0] += inside[0]
        passed[1] += all(inside)
    assert passed[0] > 0
    assert passed[1] == 0


@pytest.mark.parametrize("missing", ["injected", "trace_target"])
def test_noise_that_was_not_measured_is_not_taken_for_matched(missing: str, tmp_path: Path) -> None:
    """As in runs from before a metric had its name."""
    case = next(case for case in CASES if case.claim == "accuracy-order")
    whole = case.run(tmp_path / "whole", case.verdicts["supported"])
    rows = [entry for entry in whole.metrics().to_pylist() if entry["metric"] != missing]
    run = written(tmp_path / "run", case.experiment, whole.info["config"], rows)
    [found] = CLAIM[case.claim].judge(Evidence.of(run))
    assert found.verdict == "undecided"
    assert found.veto is not None
    assert found.veto.startswith("the injected trace of sgd was not measured")


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_a_projection_coefficient_without_logarithm_is_a_veto(value: float, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.claim == "aligned")
    found = case.judged(tmp_path / "run", (3.0, value, 2.0))
    assert found.verdict == "undecided"
    assert found.veto == "diverged or not defined in 1 of 3 seeds; a is not positive in 1 of 3 seeds"


def test_the_mean_of_a_skewed_coefficient_is_geometric(tmp_path: Path) -> None:
    """On the plain scale one large value makes the interval reach below 0, where no such coefficient can lie."""
    values = (3.0, 0.7, 3.7)
    case = next(case for case in CASES if case.claim == "aligned")
    found = case.judged(tmp_path / "run", values)
    assert stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))[0] < 0
    assert found.low > 0
    assert found.effect == pytest.approx(np.prod(values) ** (1 / 3))


def test_the_interval_of_a_rank_correlation_stays_within_its_range(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.claim == "flatter-generalises")
    for name, values in case.verdicts.items():
        found = case.judged(tmp_path / name, values)
        assert -1 < found.low <= found.effect <= found.high < 1
