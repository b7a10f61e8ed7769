"""Claims and findings as text: in JSON, in a terminal and on a page."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from claim_runs import (
    CLAIM,
    GD_STEPS,
    RATES,
    STEPS,
    in_terminal,
    minimum,
    toy,
    written,
)
from noisescape.experiments.claims import CLAIMS, Claim, Finding, Result, ledger
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.suite import paper_suite
from noisescape.report.ledger import ledger_sections, rules_section, tally
from noisescape.report.ledger_terminal import ledger_text
from noisescape.report.page import Verdicts, render
from noisescape.runs.run import Run, strict_json


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_says_what_it_is_and_how_it_is_judged(claim: Claim) -> None:
    for text in (claim.statement, claim.where, claim.statistic, claim.rule):
        assert text.strip()
        assert "  " not in text
    assert claim.statement.endswith(".")
    assert claim.statistic.endswith(".")
    assert claim.rule.endswith(".")
    assert "upported" in claim.rule
    assert "contradicted" in claim.rule
    assert claim.name == claim.name.lower()
    assert claim.experiments
    assert set(claim.experiments) <= EXPERIMENTS.keys()
    assert claim.form.format(0.5)


@pytest.mark.parametrize("constants", [{"family": "primary"}, {"looks": (12,)}])
def test_a_claim_is_primary_with_looks_or_neither(constants: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the claim 'batch-gap' needs looks if it is primary, and only then"):
        replace(CLAIM["batch-gap"], **constants)


def test_claims_have_names_of_their_own_and_controls_come_last() -> None:
    assert len(CLAIM) == len(CLAIMS)
    assert len({claim.statement for claim in CLAIMS}) == len(CLAIMS)
    assert [claim.control for claim in CLAIMS] == sorted(claim.control for claim in CLAIMS)


def test_every_experiment_of_the_paper_bears_on_a_claim() -> None:
    for experiment in paper_suite("paper"):
        assert [claim for claim in CLAIMS if experiment in claim.experiments and not claim.control]


EXAMPLE = Finding(
    CLAIM["isotropic-as-gd"],
    "svhn",
    "svhn-1",
    "svhn",
    Result("supported", 0.00123, -0.004, 0.0061, 3, "a and b", p=0.04),
)


@pytest.mark.parametrize(
    ("claim", "result", "text"),
    [
        ("isotropic-as-gd", EXAMPLE.result, "+0.1% [-0.4%, +0.6%]"),
        ("toy-order", Result("supported", 0.5, 0.25, 1.0, 9), "+50.0% [+25.0%, +100.0%]"),
        ("flatter-at-matched-loss", Result("undecided", -0.504, -1.2, 0.2, 3), "-0.50 [-1.20, +0.20]"),
        ("indicator-along", Result("supported", 1234.5, 12.345, 123456.0, 3), "1234 [12.35, 1.235e+05]"),
        ("ill-conditioned", Result("supported", 0.61803, 0.6, 0.63, 3), "0.618 [0.6, 0.63]"),
        ("flatter-generalises", Result("undecided", -0.25, -1.0, 0.5, 3), "-0.25 [-1.00, +0.50]"),
        ("batch-gap", Result("undecided", 0.1, -math.inf, math.inf, 1), "+10.0%"),
        ("indicator-along", Result("undecided", 3.0, 0.0, math.inf, 1), "3"),
        ("batch-gap", Result("undecided", math.nan, math.nan, math.nan, 0), "–"),
        ("batch-gap", Result("undecided", math.inf, math.nan, math.nan, 0), "–"),
    ],
)
def test_effects_are_printed_with_their_interval(claim: str, result: Result, text: str) -> None:
    assert Finding(CLAIM[claim], "digits", "run", "digits", result).effect_text == text


def test_a_finding_is_strict_json() -> None:
    found = json.loads(strict_json(EXAMPLE.to_dict()), parse_constant=pytest.fail)
    claim = CLAIM["isotropic-as-gd"]
    assert found == {
        "name": "isotropic-as-gd",
        "statement": claim.statement,
        "where": claim.where,
        "statistic": claim.statistic,
        "rule": claim.rule,
        "control": False,
        "family": None,
        "exploratory": True,
        "experiment": "svhn",
        "run": "svhn-1",
        **{key: value for key, value in asdict(EXAMPLE.result).items() if key != "remark"},
        "looks": [],
        "note": "",
    }
    endless = replace(EXAMPLE, result=Result("undecided", math.nan, -math.inf, math.inf, 1))
    found = json.loads(strict_json(endless.to_dict()), parse_constant=pytest.fail)
    assert (found["effect"], found["low"], found["high"], found["p"]) == (None, None, None, None)


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Run]:
    """An escape, where SGD and gradient descent ran, and a toy."""
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": ["gd", "sgd"]}
    rows = [entry for seed in range(2) for entry in minimum(seed)]
    escape = written(tmp_path / "escape", "digits", config, rows)
    return [escape, toy(tmp_path / "toy", rotated=RATES).pool.runs[0]]


def test_the_ledger_is_in_the_order_of_the_claims_then_of_the_runs(two_runs: list[Run], tmp_path: Path) -> None:
    other = toy(tmp_path / "other").pool.runs[0]
    findings = ledger([*two_runs, other])
    places = [([*CLAIM].index(f.claim.name), ["escape", "toy", "other"].index(f.run)) for f in findings]
    assert places == sorted(places)
    assert [(f.claim.name, f.experiment, f.run) for f in findings[:3]] == [
        ("toy-order", "toy-2d", "toy"),
        ("toy-order", "toy-2d", "other"),
        ("indicator-along", "digits", "escape"),
    ]
    assert ledger([]) == []


def test_a_run_that_bears_on_no_claim_has_no_findings(tmp_path: Path) -> None:
    assert ledger([written(tmp_path / "run", "mnist", {}, [])]) == []


def test_the_ledger_in_a_terminal_names_each_claim_once(two_runs: list[Run]) -> None:
    findings = ledger(two_runs)
    text = in_terminal(ledger_text(findings))
    for claim in {finding.claim for finding in findings}:
        assert text.count(f"{'Control: ' if claim.control else ''}{claim.statement} (exploratory)\n") == 1
        assert claim.rule not in text
    for finding in findings:
        assert f"{finding.effect_text}, n = {finding.result.n}\n" in text
    assert text.count("toy-2d") == sum(finding.experiment == "toy-2d" for finding in findings)
    assert text.endswith("corrected neither for the other claims nor for looking again.\n")
    verbose = in_terminal(ledger_text(findings, verbose=True))
    for claim in {finding.claim for finding in findings}:
        assert f"  {claim.statistic}\n  {claim.rule}\n" in verbose
    alone = in_terminal(ledger_text(ledger(two_runs[:1])))
    assert "digits" not in alone, "one run need not be named"


def test_numbers_stay_whole_in_a_terminal_of_80_columns(two_runs: list[Run]) -> None:
    found = ledger(two_runs)
    long = replace(
        found[0], result=replace(found[0].result, case="a case of many words " * 5, remark="a note " * 30)
    )
    lines = in_terminal(ledger_text([long, *found]), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    for finding in [long, *found]:
        assert any(line.endswith(f"{finding.effect_text}, n = {finding.result.n}") for line in lines)


def test_two_runs_of_one_experiment_are_named_apart(two_runs: list[Run], tmp_path: Path) -> None:
    findings = ledger([two_runs[1], toy(tmp_path / "another", {**RATES, "gld-constant": 0.45}).pool.runs[0]])
    lines = [line for line in in_terminal(ledger_text(findings[:2])).splitlines() if "n = " in line]
    assert ["another" in line for line in lines] == [False, True]
    cases = [verdict.case for claim in shown(findings)[0].claims for verdict in claim.verdicts]
    assert sum("another" in case for case in cases) == 1


def shown(findings: list[Finding]) -> list[Verdicts]:
    return [item for item in ledger_sections(findings)[0].items if isinstance(item, Verdicts)]


def test_a_page_draws_intervals_on_one_scale_and_leaves_out_what_is_not_there() -> None:
    def finding(low: float, effect: float, high: float, **changes: Any) -> Finding:
        return replace(EXAMPLE, result=replace(EXAMPLE.result, low=low, effect=effect, high=high, **changes))

    [found] = shown([finding(-1.0, 1.0, 3.0, p=float("nan")), finding(0.0, 0.5, 1.0, remark="told")])
    [claim] = found.claims
    assert [verdict.bar for verdict in claim.verdicts] == [(25.0, 0.0, 100.0, 50.0), (25.0, 25.0, 50.0, 37.5)]
    assert not any(detail.startswith("p =") for detail in claim.verdicts[0].details)
    assert claim.verdicts[1].details[-1] == "told"
    [unknown] = shown([finding(float("-inf"), 1.0, float("inf"))])
    assert unknown.claims[0].verdicts[0].bar is None


@pytest.mark.parametrize(
    ("verdict", "tone"), [("supported", "good"), ("contradicted", "bad"), ("undecided", "care")]
)
def test_a_badge_has_its_word_beside_its_colour_and_text_stays_text(verdict: str, tone: str) -> None:
    hostile = "<script>alert(1)</script>"
    found = replace(EXAMPLE, result=replace(EXAMPLE.result, verdict=verdict, case=hostile, remark=hostile))
    page = render("t", "l", ledger_sections([found]), {})
    assert f'<span class="badge {tone}">{verdict}</span>' in page
    assert hostile not in page
    assert page.count("&lt;script&gt;alert(1)") == 2


def test_the_ledger_on_a_page_parts_claims_from_controls(two_runs: list[Run]) -> None:
    findings = ledger(two_runs)
    [section] = ledger_sections(findings)
    parts = shown(findings)
    assert [sum(len(claim.verdicts) for claim in part.claims) for part in parts] == [
        sum(not finding.claim.control for finding in findings),
        sum(finding.claim.control for finding in findings),
    ]
    assert section.text.startswith(tally([f for f in findings if not f.claim.control]))
    for claim in (claim for part in parts for claim in part.claims):
        counts = {f.result.n for f in findings if f.claim.statement == claim.statement}
        assert claim.standing == (f"exploratory, n = {counts.pop()}" if len(counts) == 1 else "exploratory")
    assert "Exploratory intervals are at 95 % and corrected neither for the other claims" in section.text
    assert "Primary" not in section.text, "there are none"
    [rules] = rules_section(findings)
    assert [rows[0] for rows in rules.items[0].rows] == list(dict.fromkeys(f.claim.name for f in findings))
    assert ledger_sections([]) == rules_section([]) == []


def test_verdicts_are_counted_in_a_sentence() -> None:
    def verdicts(*names: Any) -> list[Finding]:
        return [replace(EXAMPLE, result=replace(EXAMPLE.result, verdict=name)) for name in names]

    found = verdicts("undecided", "supported", "contradicted", "supported")
    assert (
        tally(found) == "Of 4 exploratory findings on the paper's claims: 2 supported, 1 contradicted, 1 undecided."
    )
    primary = replace(EXAMPLE, claim=CLAIM["leaves-the-basin"])
    assert tally([*verdicts("undecided"), primary]) == (
        "Of 1 primary finding on the paper's claims: 1 supported. "
        "Of 1 exploratory finding on the paper's claims: 1 undecided."
    )
