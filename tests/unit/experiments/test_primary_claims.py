"""The primary claims: judged at looks fixed beforehand, as one family, by runs whose outcome is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from claim_runs import CLAIM, STEPS, in_terminal, matched, written
from noisescape.experiments.claims import CLAIMS, Evidence, Finding, Result, exceeds, ledger
from noisescape.experiments.claims.claim import Judge
from noisescape.experiments.claims.primary import primary_results
from noisescape.experiments.group_sequential import boundaries
from noisescape.report.ledger import ledger_sections, tally
from noisescape.report.ledger_terminal import ledger_text
from noisescape.runs.run import Run, strict_json

FLATTER, LEAVES, GENERALISES = PRIMARY = (
    "flatter-at-matched-loss",
    "leaves-the-basin",
    "generalises-at-matched-loss",
)
LOOKS = (12, 20, 30, 40)
NOTHING = [0.2 * (-1) ** place for place in range(60)]
"""Statistics without an effect: their mean is 0 at every look."""


def clear(effect: float, count: int = 60) -> list[float]:
    """Statistics whose every look finds the effect."""
    return [effect * (1 + 0.1 * (-1) ** place) for place in range(count)]


def run_of(
    path: Path,
    seeds: int,
    ratios: Sequence[float] = NOTHING,
    barriers: Sequence[float] = NOTHING,
    gains: Sequence[float] = NOTHING,
    *,
    root: int = 0,
    stuck: Sequence[int] = (),
) -> Run:
    rows = []
    for seed in range(seeds):
        end = {
            "sharpness": math.exp(ratios[seed]),
            "barrier": 0.05 * 10 ** barriers[seed],
            "test_accuracy": 0.5 + gains[seed],
            "reached": float(seed not in stuck),
        }
        rows += matched(seed, "sgd", [end], descent={"reached": 1.0, "sharpness": 1.0, "test_accuracy": 0.5})
    config: dict[str, Any] = {
        "seeds": seeds,
        "seed": root,
        "steps": STEPS,
        "noise_seeds": 1,
        "dynamics": ["gd", "sgd"],
    }
    return written(path, "matched-loss", config, rows)


def found(*runs: Run) -> dict[str, Finding]:
    return {finding.claim.name: finding for finding in ledger(runs)}


def test_the_family_and_its_looks_are_fixed() -> None:
    """To change them is to change the error that the committed verdicts were judged by."""
    assert {claim.name: claim.looks for claim in CLAIMS if claim.family == "primary"} == {
        FLATTER: (12,),
        LEAVES: (12,),
        GENERALISES: LOOKS,
    }
    assert all(claim.family in ("primary", None) for claim in CLAIMS)
    assert [claim.exploratory for claim in CLAIMS] == [claim.family is None for claim in CLAIMS]


@pytest.mark.parametrize("seeds", [1, 3, 11])
def test_before_the_first_look_nothing_is_decided(seeds: int, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", seeds, clear(-1.0), clear(1.0), clear(0.1))
    for name, effect in ((FLATTER, -1.0), (LEAVES, 1.0), (GENERALISES, 0.1)):
        result = found(run)[name].result
        assert result.verdict == "undecided"
        assert result.veto is not None
        assert result.veto.startswith(f"{seeds} of 12 seeds: before the first look")
        assert result.looks == ()
        assert result.n == seeds
        assert result.effect == pytest.approx(effect, rel=0.11)


def test_the_seeds_of_the_plan_count_in_its_order_and_no_look_leaves_a_gap(tmp_path: Path) -> None:
    """What is made first, or besides, changes no look."""
    last = run_of(tmp_path / "102", 6, clear(-3.0), root=102)
    further = run_of(tmp_path / "103", 8, clear(-9.0), root=103)
    early = found(last, further)[FLATTER].result
    assert early.looks == ()
    assert early.veto is not None
    assert early.veto.startswith("14 seeds, not the first 12 of the plan: before the first look")
    first = [run_of(tmp_path / str(root), 3, clear(-1.0), root=root) for root in (101, 100)]
    whole = found(last, *first)[FLATTER].result
    assert (whole.n, whole.effect, whole.verdict) == (12, pytest.approx(-2.0, rel=0.02), "supported")
    pilot = run_of(tmp_path / "0", 3, clear(5.0), root=0)
    assert found(pilot, further, last, *first)[FLATTER].result.looks == whole.looks
    assert found(pilot)[FLATTER].result.n == 3, "somebody's own runs count for themselves"


def test_runs_with_more_repetitions_than_the_plan_has_count_as_far_as_it_goes(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(root), 6, clear(-1.0), root=root) for root in (100, 101, 102)]
    assert found(*runs)[FLATTER].result.n == 12
    assert found(*runs[:2])[FLATTER].result.note.startswith("6 of 12 seeds: before the first look")


@pytest.mark.parametrize("sign", [1, -1])
def test_clear_effects_are_decided_at_the_first_look(sign: int, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 12, clear(-sign * 1.0), clear(sign * 1.0), clear(sign * 0.1))
    for name in PRIMARY:
        result = found(run)[name].result
        assert result.verdict == ("supported" if sign == 1 else "contradicted")
        [look] = result.looks
        assert (look.n, look.crossed, look.veto) == (12, True, None)
        assert look.p == result.p < look.boundary


def test_a_look_is_a_t_test_beside_its_boundary(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    gains = [*(0.02 + 0.05 * random.standard_normal(60))]
    result = found(run_of(tmp_path / "run", 35, gains=gains))[GENERALISES].result
    assert [look.n for look in result.looks] == [12, 20, 30]
    bounds = boundaries(LOOKS, 0.05 / 3)
    for look, bound in zip(result.looks, bounds, strict=False):
        own = gains[: look.n]
        assert look.p == pytest.approx(stats.ttest_1samp(own, 0.0).pvalue, rel=1e-9)
        assert look.boundary == pytest.approx(bound)
        assert look.effect == pytest.approx(np.mean(own))
        ends = stats.t.interval(1 - bound, look.n - 1, loc=np.mean(own), scale=stats.sem(own))
        assert (look.low, look.high) == pytest.approx(ends, rel=1e-9)
        assert look.crossed == (look.p < bound) == (look.low > 0 or look.high < 0)


def test_between_looks_nothing_changes_and_later_seeds_are_shown(tmp_path: Path) -> None:
    gains = [*clear(0.1, 12), *([-5.0] * 7)]
    at_twelve, at_nineteen = (found(run_of(tmp_path / str(n), n, gains=gains))[GENERALISES] for n in (12, 19))
    assert at_twelve.result.verdict == at_nineteen.result.verdict == "supported"
    assert at_twelve.result.looks == at_nineteen.result.looks
    assert at_nineteen.result.n == 12
    assert at_twelve.result.note == ""
    low, high = stats.t.interval(0.95, 18, loc=np.mean(gains), scale=stats.sem(gains))
    assert at_nineteen.result.note == f"all 19 seeds: {np.mean(gains):+.1%} [{low:+.1%}, {high:+.1%}]"


def test_what_a_look_decided_later_looks_do_not_undo(tmp_path: Path) -> None:
    gains = [*clear(0.1, 12), *([-5.0, -4.0] * 14)]
    result = found(run_of(tmp_path / "run", 40, gains=gains))[GENERALISES].result
    assert (result.verdict, result.n) == ("supported", 12)
    assert [look.n for look in result.looks] == [*LOOKS]
    assert result.looks[-1].effect < -1


def test_a_later_look_decides_what_the_first_did_not(tmp_path: Path) -> None:
    gains = [*NOTHING[:12], *clear(1.0, 8), *clear(1.0, 20)]
    verdicts = {n: found(run_of(tmp_path / str(n), n, gains=gains))[GENERALISES].result for n in (12, 19, 20, 30)}
    assert [verdicts[n].verdict for n in (12, 19)] == ["undecided", "undecided"]
    assert verdicts[30].verdict == "supported"
    crossed = [look.n for look in verdicts[30].looks if look.crossed]
    assert verdicts[30].n == crossed[0] > 12


def test_a_p_below_a_twentieth_is_not_enough(tmp_path: Path) -> None:
    """0.02 at one look of one claim: the family's third of 0.05 is 0.0167."""
    target = stats.t.isf(0.01, 11)
    spread = np.array([0.1, -0.1] * 6)
    values = [*(spread + target * stats.sem(spread))]
    run = run_of(tmp_path / "run", 12, ratios=values)
    result = found(run)[FLATTER].result
    assert result.p == pytest.approx(0.02, rel=1e-6)
    assert result.verdict == "undecided"
    assert result.veto is None
    assert result.looks[0].boundary == pytest.approx(0.05 / 3)
    # another claim that is decided leaves its share
    helped = found(run_of(tmp_path / "helped", 12, ratios=values, barriers=clear(1.0)))
    assert helped[LEAVES].result.looks[0].boundary == pytest.approx(0.05 / 3)
    assert helped[FLATTER].result.looks[0].boundary == pytest.approx(0.05 / 2)
    assert helped[FLATTER].result.verdict == "contradicted", "above 0"


def test_a_vetoed_look_decides_nothing_and_a_later_one_may(tmp_path: Path) -> None:
    """Three of the first twelve got stuck, none after them."""
    gains = clear(0.3)
    first = found(run_of(tmp_path / "first", 12, gains=gains, stuck=(0, 1, 2)))[GENERALISES].result
    assert first.verdict == "undecided"
    assert first.veto == "3 of 12 runs of sgd, or gradient descent beside them, did not come down to their loss"
    assert (first.looks[0].crossed, first.looks[0].veto) == (False, first.veto)
    later = found(run_of(tmp_path / "later", 20, gains=gains, stuck=(0, 1, 2)))[GENERALISES].result
    assert (later.verdict, later.n, later.veto) == ("supported", 20, None)
    assert [look.crossed for look in later.looks] == [False, True]


def test_later_trouble_does_not_undo_a_look(tmp_path: Path) -> None:
    result = found(run_of(tmp_path / "run", 20, gains=clear(0.3), stuck=range(12, 20)))[GENERALISES].result
    assert (result.verdict, result.n) == ("supported", 12)
    assert [look.veto is None for look in result.looks] == [True, False]


def test_equal_values_are_judged_by_their_number_at_a_look(tmp_path: Path) -> None:
    """2^−11 is below the boundary of the one look at 12 seeds, and above that of the first of four."""
    equal = found(run_of(tmp_path / "run", 12, barriers=[-9.0] * 12, gains=[0.125] * 12))
    [look] = equal[LEAVES].result.looks
    assert (look.p, look.crossed, equal[LEAVES].result.verdict) == (2.0**-11, True, "contradicted")
    [look] = equal[GENERALISES].result.looks
    assert (look.p, look.crossed, look.low, look.high) == (2.0**-11, False, -math.inf, math.inf)
    assert equal[GENERALISES].result.verdict == "undecided"


def test_seeds_of_several_runs_add_up_to_a_look(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", 7, clear(-1.0), root=1)
    two = run_of(tmp_path / "two", 5, clear(-1.0), root=2)
    assert found(one)[FLATTER].result.verdict == "undecided"
    assert found(two, one)[FLATTER].result.verdict == "supported"


def test_a_look_takes_the_first_seeds_by_root_seed(tmp_path: Path) -> None:
    first = run_of(tmp_path / "first", 12, clear(-1.0), root=1)
    later = run_of(tmp_path / "later", 12, clear(1.0), root=2)
    assert found(later, first)[FLATTER].result.verdict == "supported"
    assert found(run_of(tmp_path / "none", 12, clear(1.0), root=0), first)[FLATTER].result.verdict == "contradicted"


class Seeds:
    """A pool of 40 seeds without a run's files."""

    seeds = 40
    dynamics = (("sgd", "gd"),) * 40
    places = tuple((0, seed) for seed in range(40))


def judged_directly(values: np.ndarray, seeds: int = 40) -> list[Result]:
    """The family's results from its statistics, (3, 40)."""

    def judge(own: np.ndarray) -> Judge:
        return lambda evidence: [exceeds([own[seed] for seed in evidence.picked], 0.0)]

    claims = [replace(CLAIM[name], judge=judge(own)) for name, own in zip(PRIMARY, values, strict=True)]
    evidence = Evidence(Seeds(), tuple(range(seeds)))  # type: ignore[arg-type]
    return [*primary_results(claims, evidence).values()]


def test_verdicts_without_an_effect_are_as_rare_as_they_should_be() -> None:
    """1,000 families without any effect: 5 % with a verdict."""
    random = np.random.default_rng(5)
    decided = sum(
        any(found.verdict != "undecided" for found in judged_directly(random.standard_normal((3, 40))))
        for _ in range(1000)
    )
    assert decided / 1000 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 1000))


@pytest.mark.slow
def test_a_verdict_once_there_stays_as_seeds_are_added() -> None:
    """Small effects, so that all kinds of ways lead to a verdict; also by a level that rose for another claim's."""
    random = np.random.default_rng(7)
    reached = []
    for _ in range(60):
        values = random.standard_normal((3, 40)) + np.array([[0.9], [0.9], [0.5]])
        before = ["undecided"] * 3
        for seeds in range(10, 41):
            now = [found.verdict for found in judged_directly(values, seeds)]
            assert all(old in ("undecided", new) for old, new in zip(before, now, strict=True))
            reached += [seeds for old, new in zip(before, now, strict=True) if old != new]
            before = now
    assert set(reached) == {*LOOKS}, "at looks and nowhere else"


def test_what_the_looks_found_is_in_json_terminal_and_page(tmp_path: Path) -> None:
    findings = ledger([run_of(tmp_path / "run", 20, gains=clear(0.1))])
    entry = next(finding for finding in findings if finding.claim.name == GENERALISES)
    plain = json.loads(strict_json(entry.to_dict()), parse_constant=pytest.fail)
    assert (plain["family"], plain["exploratory"], plain["veto"]) == ("primary", False, None)
    assert [(look["n"], look["crossed"]) for look in plain["looks"]] == [(12, True), (20, True)]
    assert plain["looks"][0].keys() == {"n", "effect", "low", "high", "p", "boundary", "crossed", "veto"}
    text = in_terminal(ledger_text(findings))
    assert f"{entry.claim.statement} (primary)\n" in text
    assert text.count("look at 12 seeds: p = ") == 3
    assert ": crossed\n" in text
    assert ": not crossed\n" in text
    [section] = ledger_sections(findings)
    looks = next(item for item in section.items if item.caption.startswith("The looks"))
    assert len(looks.rows) == 4
    assert "one family with an error of 5 %" in section.text
    assert tally(findings) == "Of 3 primary findings on the paper's claims: 1 supported, 2 undecided."
