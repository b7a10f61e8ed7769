"""Which dynamics and which steps each claim on networks is judged by."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from claim_runs import (
    ALL,
    CASES,
    CLAIM,
    GD_STEPS,
    STEPS,
    accuracy,
    all_at_once,
    along,
    hidden,
    row,
    sharpness,
    written,
)
from noisescape.experiments.claims import Evidence, ledger


@pytest.mark.parametrize("compared", [ALL, ALL[1:]], ids=["all", "without gradient descent"])
def test_every_claim_on_escapes_judges_its_dynamics_and_no_other(compared: tuple[str, ...], tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": compared}
    rows = [entry for seed, name in itertools.product(range(2), compared) for entry in all_at_once(seed, name)]
    findings = ledger([written(tmp_path / "run", "fashion-mnist", config, rows)])
    cases = {name: [f.result.case for f in findings if f.claim.name == name] for name in CLAIM}
    whatever_ran = {"indicator-along": [""], "ill-conditioned": [""], "aligned": [""], "accuracy-follows": [""]}
    beside_gradient_descent = {
        "escapes": ["sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector"],
        "stays": ["gld-constant", "gld-dynamic", "gld-diagonal"],
        "flatter": ["sgd", "gld-leading", "gld-hessian", "gld-top-eigenvector"],
        "not-flatter": ["gld-constant", "gld-dynamic", "gld-diagonal"],
        "gaussian-escapes": ["gld-full"],
        "shuffled-stays": ["gld-shuffled"],
        "gaussian-flattens": ["gld-full"],
        "gaussian-as-sgd": [""],
        "shuffled-does-not-flatten": ["gld-shuffled"],
        "noise-is-needed": ["gd-gradient-penalty"],
    }
    expected = whatever_ran | (beside_gradient_descent if "gd" in compared else {})
    assert {name: found for name, found in cases.items() if found} == expected


@pytest.mark.parametrize("base", [0.0, -1.0])
def test_where_gradient_descent_is_not_sharp_nothing_is_relative_to_it(base: float, tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "dynamics": ["gd", "sgd"]}
    rows = [
        entry
        for seed, level in enumerate((base, 2.0))
        for entry in (*sharpness(seed, "gd", level), *sharpness(seed, "sgd", 1.0))
    ]
    [found] = CLAIM["flatter"].judge(Evidence(written(tmp_path / "run", "digits", config, rows)))
    assert (found.verdict, found.n) == ("undecided", 1)
    assert found.effect == pytest.approx(-0.5)


def test_accuracy_follows_compares_the_means_of_both_groups(tmp_path: Path) -> None:
    found = dict(zip(ALL, (0.0, 0.9, 0.3, 0.4, 0.8, 0.6, 0.7, 0.2, 0.0, 0.0, 0.0), strict=True))
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": ALL}
    rows = [
        entry
        for seed, name in itertools.product(range(2), ALL)
        for entry in accuracy("escape", seed, name, found[name] + 0.05 * seed)
    ]
    evidence = Evidence(written(tmp_path / "run", "digits", config, rows))
    [result] = CLAIM["accuracy-follows"].judge(evidence)
    assert result.effect == pytest.approx((0.9 + 0.6 + 0.7 + 0.2) / 4 - (0.3 + 0.4 + 0.8) / 3)
    assert result.verdict == "supported"


@pytest.mark.parametrize(
    ("experiment", "judged"),
    [
        ("fashion-mnist", {"indicator-along", "ill-conditioned", "aligned"}),
        ("svhn", {"flatter-generalises"}),
    ],
)
def test_what_did_not_run_is_not_judged(experiment: str, judged: set[str], tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "dynamics": ["gd"]}
    rows = [
        entry
        for seed in range(2)
        for entry in (
            *all_at_once(seed, "gd"),
            row("training", seed, "gd", STEPS, "test_accuracy", 0.5),
            row("training", seed, "gd", STEPS, "sharpness/signed", 0.5),
        )
    ]
    run = written(tmp_path / "run", experiment, config, rows)
    assert {finding.claim.name for finding in ledger([run])} == judged


def test_the_least_ratio_of_all_epochs_is_noted(tmp_path: Path) -> None:
    case = CASES[0]
    found = case.judged(tmp_path / "high", [math.log(10), math.log(20), math.log(30)])
    assert found.note == ""  # every seed's first epoch has the ratio 1
    rows = [{**entry, "value": 7 * entry["value"]} for entry in hidden(0, 2.0, 1.0) + hidden(1, 2.5, 1.0)]
    run = written(tmp_path / "higher", "one-hidden-layer", {"seeds": 2}, rows)
    [found] = CLAIM[case.claim].judge(Evidence(run))
    assert found.note == "at least 7 at every epoch"
    assert found.effect == pytest.approx(7 * math.exp(2.25))


def test_every_width_and_optimiser_is_a_case_of_its_own(tmp_path: Path) -> None:
    rows = [
        {**entry, "width": width, "optimiser": optimiser}
        for seed in range(3)
        for width, optimiser, sign in ((32, "gd", 1), (512, "adam", 1), (32, "adam", -1))
        for entry in hidden(seed, sign * (1 + 0.1 * seed), 1.0)
    ]
    evidence = Evidence(written(tmp_path / "run", "one-hidden-layer", {"seeds": 3}, rows))
    found = {result.case: result.verdict for result in CLAIM["indicator-one-hidden-layer"].judge(evidence)}
    assert found == {
        "adam, width 32": "contradicted",
        "adam, width 512": "supported",
        "gd, width 32": "supported",
    }


@pytest.mark.parametrize("value", [0.0, -3.0, math.nan])
def test_a_ratio_without_logarithm_leaves_it_undecided(value: float, tmp_path: Path) -> None:
    for index, (name, rows) in enumerate((("indicator-one-hidden-layer", hidden), ("indicator-along", along))):
        case = CASES[index]
        table = [entry for seed in range(3) for entry in rows(seed, 1.0 + 0.1 * seed, 1.0)]
        metric = "anisotropy" if rows is hidden else "along/trace_h_sigma"
        broken = next(entry for entry in table if entry["metric"] == metric and entry["seed"] == 1)
        broken["value"] = value
        config = {"seeds": 3, "gd_steps": GD_STEPS}
        [found] = CLAIM[name].judge(Evidence(written(tmp_path / name, case.experiment, config, table)))
        assert found.verdict == "undecided"
        assert "diverged or not defined in 1 of 3 seeds" in found.note


@pytest.mark.parametrize("reference", [0.0, -2.0])
def test_where_the_curvature_is_not_positive_there_is_nothing_to_exceed(reference: float, tmp_path: Path) -> None:
    """TrH ≤ 0, as near the start: such a step is left out."""
    rows = [entry for seed in range(3) for entry in along(seed, 1.0 + 0.1 * seed, 1.0)]
    for entry in rows:
        if entry["metric"] == "along/isotropic_reference" and entry["step"] == 10:
            entry["value"] = reference
    [found] = CLAIM["indicator-along"].judge(
        Evidence(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, rows))
    )
    assert found.effect == pytest.approx(math.exp(1.5 * 1.1)), "the mean of 2 and 1 times each seed's"
    assert found.verdict == "supported"


def test_no_ratio_has_no_least(tmp_path: Path) -> None:
    rows = [entry for seed in range(3) for entry in along(seed, 1.0, 1.0)]
    for entry in rows:
        if entry["metric"].endswith("isotropic_reference"):
            entry["value"] = -1.0
    evidence = Evidence(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, rows))
    [found] = CLAIM["indicator-along"].judge(evidence)
    assert found.verdict == "undecided"
    assert found.note == "diverged or not defined in 3 of 3 seeds"
