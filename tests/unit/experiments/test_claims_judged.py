"""Which dynamics and which steps each claim on networks is judged by."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from claim_runs import (
    CASES,
    CLAIM,
    GD_STEPS,
    STEPS,
    Rows,
    all_at_once,
    along,
    hidden,
    minimum,
    row,
    written,
)
from noisescape.experiments.claims import Evidence, ledger


@pytest.mark.parametrize(
    ("experiment", "judged"),
    [
        ("fashion-mnist", {"indicator-along", "ill-conditioned", "aligned"}),
        ("digits", {"indicator-along", "ill-conditioned", "aligned"}),
        ("svhn", {"flatter-generalises"}),
        ("matched-loss", set()),
    ],
)
def test_what_did_not_run_is_not_judged(experiment: str, judged: set[str], tmp_path: Path) -> None:
    config = {"seeds": 2, "steps": STEPS, "gd_steps": GD_STEPS, "noise_seeds": 1, "dynamics": ["gd"]}
    rows = [
        entry
        for seed in range(2)
        for entry in (
            *minimum(seed),
            *all_at_once(seed, "gd"),
            row("training", seed, "gd", STEPS, "test_accuracy", 0.5),
            row("training", seed, "gd", STEPS, "sharpness/signed", 0.5),
        )
    ]
    run = written(tmp_path / "run", experiment, config, rows)
    assert {finding.claim.name for finding in ledger([run])} == judged


def best(seed: int, d: float, k: float, a: float = 2.0) -> Rows:
    """D = TrH·TrΣ/reference = 30·4/0.012 = 10,000."""
    figures = {
        "decay_exponent_best": d,
        "decay_exponent_best_k": k,
        "projection_coefficient": a,
        "trace_h": 30.0,
        "trace_sigma": 4.0,
        "isotropic_reference": 0.012,
    }
    return [row("minimum", seed, "gd", GD_STEPS, metric, value) for metric, value in figures.items()]


def test_the_best_k_is_judged_where_it_was_measured(tmp_path: Path) -> None:
    """The paper asks for some k."""
    config = {"seeds": 3, "gd_steps": GD_STEPS, "k": 10}
    plain = [row("minimum", seed, "gd", GD_STEPS, "decay_exponent", 0.3 + 0.01 * seed) for seed in range(3)]
    [at_ten] = CLAIM["ill-conditioned"].judge(Evidence.of(written(tmp_path / "plain", "digits", config, plain)))
    rows = [*plain, *best(0, 0.75, 40), *best(1, 0.75, 60, a=0.5), *best(2, 0.76, 41)]
    found = CLAIM["ill-conditioned"].judge(Evidence.of(written(tmp_path / "run", "digits", config, rows)))
    assert [(result.case, result.verdict) for result in found] == [
        ("k = 10", "contradicted"),
        ("best k", "supported"),
    ]
    assert found[0] == at_ten
    assert found[1].effect == pytest.approx((0.75 + 0.75 + 0.76) / 3)
    # a·D^{2d−1}: 0.5·10,000^0.5 = 50 and 2·10,000^0.52
    assert found[1].remark == f"k = 40 to 60; a·D^(2d−1) = 50 to {2 * 10_000**0.52:.3g}"


def test_without_a_dimension_the_best_k_has_no_guarantee(tmp_path: Path) -> None:
    rows = [entry for seed in range(3) for entry in best(seed, 0.7 + 0.01 * seed, 40)]
    kept = [entry for entry in rows if entry["metric"] != "isotropic_reference"]
    _, found = CLAIM["ill-conditioned"].judge(
        Evidence.of(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, kept))
    )
    assert (found.verdict, found.note) == ("supported", "")


def test_the_least_ratio_of_all_epochs_is_noted(tmp_path: Path) -> None:
    case = CASES[0]
    found = case.judged(tmp_path / "high", [math.log(10), math.log(20), math.log(30)])
    assert found.note == ""  # every seed's first epoch has the ratio 1
    rows = [{**entry, "value": 7 * entry["value"]} for entry in hidden(0, 2.0, 1.0) + hidden(1, 2.5, 1.0)]
    run = written(tmp_path / "higher", "one-hidden-layer", {"seeds": 2}, rows)
    [found] = CLAIM[case.claim].judge(Evidence.of(run))
    assert found.note == "at least 7 at every epoch"
    assert found.effect == pytest.approx(7 * math.exp(2.25))


def test_every_width_and_optimiser_is_a_case_of_its_own(tmp_path: Path) -> None:
    rows = [
        {**entry, "width": width, "optimiser": optimiser}
        for seed in range(3)
        for width, optimiser, sign in ((32, "gd", 1), (512, "adam", 1), (32, "adam", -1))
        for entry in hidden(seed, sign * (1 + 0.1 * seed), 1.0)
    ]
    evidence = Evidence.of(written(tmp_path / "run", "one-hidden-layer", {"seeds": 3}, rows))
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
        [found] = CLAIM[name].judge(Evidence.of(written(tmp_path / name, case.experiment, config, table)))
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
        Evidence.of(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, rows))
    )
    assert found.effect == pytest.approx(math.exp(1.5 * 1.1)), "the mean of 2 and 1 times each seed's"
    assert found.verdict == "supported"


def test_no_ratio_has_no_least(tmp_path: Path) -> None:
    rows = [entry for seed in range(3) for entry in along(seed, 1.0, 1.0)]
    for entry in rows:
        if entry["metric"].endswith("isotropic_reference"):
            entry["value"] = -1.0
    evidence = Evidence.of(written(tmp_path / "run", "digits", {"seeds": 3, "gd_steps": GD_STEPS}, rows))
    [found] = CLAIM["indicator-along"].judge(evidence)
    assert found.verdict == "undecided"
    assert found.note == "diverged or not defined in 3 of 3 seeds"
