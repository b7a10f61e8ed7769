"""What the claims on the noise knob rest on besides their own statistic."""

from __future__ import annotations

from pathlib import Path

import pytest

from claim_runs import CASES, CLAIM, STEPS, accuracy, knob_arms, written
from noisescape.experiments.claims import Evidence, ledger
from noisescape.experiments.claims.judges.noise_knob import NO_GAP
from noisescape.experiments.noise_knob import ARMS

RECOVERED = [
    case for case in CASES if case.claim in ("knob-as-small", "isotropic-does-not-recover", "penalty-recovers")
]


@pytest.mark.parametrize("case", RECOVERED, ids=lambda case: case.claim)
@pytest.mark.parametrize("gaps", [(0.0, 0.0, 0.0), (-0.05, -0.06, -0.04), (0.2, -0.1, 0.1)])
def test_without_a_gap_nothing_is_recovered(case, gaps: tuple[float, ...], tmp_path: Path) -> None:
    arm = case.dynamics[0]
    for verdict, values in case.verdicts.items():
        rows = [
            entry
            for seed, (gap, value) in enumerate(zip(gaps, values, strict=True))
            for entry in knob_arms(seed, {arm: 0.5 + value, "large-batch": 0.5, "small-batch": 0.5 + gap}, 1.0)
        ]
        config = {"seeds": 3, "steps": STEPS, "dynamics": [*case.dynamics]}
        [found] = CLAIM[case.claim].judge(Evidence.of(written(tmp_path / verdict, "noise-knob", config, rows)))
        assert (found.verdict, found.veto) == ("undecided", NO_GAP)


@pytest.mark.parametrize(
    ("arms", "judged"),
    [
        (ARMS, ["knob-trace", "batch-gap", "knob-over-large", "knob-as-small"]),
        (ARMS[:2], ["knob-trace", "knob-over-large"]),
        (ARMS[1:], ["knob-trace"]),
        (("large-batch", "small-batch"), ["batch-gap"]),
        (("isotropic", "gradient-penalty"), []),
    ],
)
def test_only_what_ran_is_judged(arms: tuple[str, ...], judged: list[str], tmp_path: Path) -> None:
    rows = [
        entry
        for seed in range(2)
        for place, name in enumerate(arms)
        for entry in accuracy("training", seed, name, 0.5 + 0.01 * place)
    ]
    run = written(tmp_path / "run", "noise-knob", {"seeds": 2, "steps": STEPS, "dynamics": [*arms]}, rows)
    whole = ["isotropic-does-not-recover", "penalty-recovers"] if arms == ARMS else []
    assert [finding.claim.name for finding in ledger([run])] == [*judged, *whole]


def test_recovered_is_what_lies_over_the_middle_of_the_gap(tmp_path: Path) -> None:
    ends = {"large-batch": 0.70, "small-batch": 0.80, "isotropic": 0.72, "gradient-penalty": 0.79}

    rows = [
        entry
        for seed, apart in enumerate((-0.002, 0.0, 0.002))
        for entry in knob_arms(
            seed, {name: value + (0.0 if name == "large-batch" else apart) for name, value in ends.items()}, 1.0
        )
    ]
    evidence = Evidence.of(
        written(tmp_path / "run", "noise-knob", {"seeds": 3, "steps": STEPS, "dynamics": [*ends]}, rows)
    )
    [isotropic], [penalty] = (
        CLAIM[name].judge(evidence) for name in ("isotropic-does-not-recover", "penalty-recovers")
    )
    assert isotropic.effect == pytest.approx(-0.03)
    assert penalty.effect == pytest.approx(0.04)
    assert (isotropic.verdict, penalty.verdict) == ("supported", "supported")
