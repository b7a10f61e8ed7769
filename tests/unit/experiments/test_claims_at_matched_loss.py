"""The claims at matched loss: what counts of several runs, and of those that did not reach the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from claim_runs import (
    ALL,
    ARMS,
    AT_LEVEL,
    CLAIM,
    NOISE_SEEDS,
    STEPS,
    UNALIGNED,
    Rows,
    all_at_once,
    matched,
    row,
    written,
)
from noisescape.experiments.claims import Evidence, Result, ledger
from noisescape.runs.run import Run

End = dict[str, float]


def end(log_ratio: float = 0.0, gain: float = 0.0, barrier: float = 0.2, reached: float = 1.0) -> End:
    """Where a run came to, beside gradient descent at AT_LEVEL."""
    return {
        "reached": reached,
        "sharpness": AT_LEVEL["sharpness"] * math.exp(log_ratio),
        "test_accuracy": AT_LEVEL["test_accuracy"] + gain,
        "barrier": barrier,
    }


def run_of(path: Path, seeds: Sequence[Sequence[End]]) -> Run:
    rows = [entry for seed, own in enumerate(seeds) for entry in matched(seed, "sgd", own)]
    return written(path, "matched-loss", config(len(seeds), ["gd", "sgd"]), rows)


def config(seeds: int, dynamics: Sequence[str], root: int = 0, noise_seeds: int = NOISE_SEEDS) -> dict[str, object]:
    return {
        "seeds": seeds,
        "seed": root,
        "steps": STEPS,
        "noise_seeds": noise_seeds,
        "dynamics": [*dynamics],
    }


def judged(name: str, run: Run) -> Result:
    [result] = CLAIM[name].judge(Evidence.of(run))
    return result


FLATTER, LEAVES, GENERALISES = "flatter-at-matched-loss", "leaves-the-basin", "generalises-at-matched-loss"


def test_the_runs_of_a_seed_are_averaged(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        [
            [end(-0.5, 0.01, 0.5), end(-0.2, 0.03, 0.05), end(-0.2, 0.02, 5.0)],
            [end(-0.1, 0.04, 0.5), end(-0.3, 0.04, 0.5), end(-0.5, 0.04, 0.0)],
        ],
    )
    assert judged(FLATTER, run).effect == pytest.approx(-0.3)
    assert judged(GENERALISES, run).effect == pytest.approx(0.03)
    # log₁₀ of 10, 1 and 100; of 10, 10 and a barrier of 0, taken for 0.001
    assert judged(LEAVES, run).effect == pytest.approx((1 + (2 + math.log10(0.02)) / 3) / 2)


def test_a_run_that_did_not_reach_the_loss_counts_as_one_like_gradient_descent(tmp_path: Path) -> None:
    stuck = end(-3.0, 0.5, 0.5, reached=0.0)
    own = [end(-0.3, 0.03), end(-0.6, 0.03), end(-0.3, 0.03)]
    run = run_of(tmp_path / "run", [own, own, [own[0], own[1], stuck]])
    found = {name: judged(name, run) for name in (FLATTER, LEAVES, GENERALISES)}
    assert found[FLATTER].effect == pytest.approx(-(0.4 + 0.4 + 0.3) / 3)
    assert found[GENERALISES].effect == pytest.approx((0.03 + 0.03 + 0.02) / 3)
    assert found[LEAVES].effect == pytest.approx((2 * math.log10(4) + (2 * math.log10(4) + 1) / 3) / 3), "measured"
    assert all(result.veto is None for result in found.values()), "one of nine"


def test_a_run_that_left_nothing_counts_as_one_that_did_not_reach_it(tmp_path: Path) -> None:
    own = [end(-0.3), end(-0.3), end(-0.3)]
    run = run_of(tmp_path / "run", [own, [end(-0.3, barrier=0.4)] * 3, own[:2]])
    assert judged(FLATTER, run).effect == pytest.approx(-(0.3 + 0.3 + 0.2) / 3)
    assert judged(LEAVES, run).veto == "diverged or not defined in 1 of 3 seeds", "no barrier was measured there"


MISSED = "4 of 15 runs of sgd, or gradient descent beside them, did not come down to their loss"


@pytest.mark.parametrize("whose", ["reached", "gd_reached"])
@pytest.mark.parametrize(("missed", "vetoed"), [(3, False), (4, True)])
def test_more_than_a_fifth_censored_are_a_veto(missed: int, vetoed: bool, whose: str, tmp_path: Path) -> None:
    runs = [end(-0.3 + 0.01 * place, 0.01 * place, 0.1 + 0.01 * place) for place in range(15)]
    run = run_of(tmp_path / "whole", [runs[place : place + 3] for place in range(0, 15, 3)])
    rows = run.metrics().to_pylist()
    for entry in rows:
        if entry["metric"] == whose and 3 * entry["seed"] + entry["replica"] < missed:
            entry["value"] = 0.0
    run = written(tmp_path / "run", "matched-loss", run.info["config"], rows)
    for name in (FLATTER, LEAVES, GENERALISES):
        assert judged(name, run).veto == (MISSED if vetoed else None)
    kept = [-0.3 + 0.01 * place for place in range(missed, 15)]
    assert judged(FLATTER, run).effect == pytest.approx(sum(kept) / 15)


def test_what_begins_in_a_minimum_that_did_not_settle_is_censored(tmp_path: Path) -> None:
    own = [end(-0.3, 0.03), end(-0.6, 0.03), end(-0.3, 0.03)]
    rows = run_of(tmp_path / "whole", [own] * 6).metrics().to_pylist()
    for entry in rows:
        if entry["metric"] == "settled" and entry["seed"] == 2:
            entry["value"] = 0.0
    run = written(tmp_path / "run", "matched-loss", config(6, ["gd", "sgd"]), rows)
    assert judged(FLATTER, run).effect == pytest.approx(-0.4 * 5 / 6)
    assert judged(GENERALISES, run).effect == pytest.approx(0.03 * 5 / 6)
    assert judged(FLATTER, run).veto is None, "one of six"


def test_where_a_run_got_stuck_gradient_descent_has_no_loss_to_come_down_to(tmp_path: Path) -> None:
    """The run is censored once, not twice."""
    own = [end(-0.3), end(-0.3), end(-0.3)]
    rows = run_of(tmp_path / "whole", [own, own]).metrics().to_pylist()
    kept = [entry for entry in rows if (entry["phase"], entry["seed"], entry["replica"]) != ("matched", 1, 0)]
    kept += [row("matched", 1, "sgd", STEPS, "reached", 0.0), row("matched", 1, "sgd", STEPS, "barrier", 0.2)]
    run = written(tmp_path / "run", "matched-loss", config(2, ["gd", "sgd"]), kept)
    found = judged(FLATTER, run)
    assert (found.veto, found.effect) == (None, pytest.approx(-(0.3 + 0.2) / 2))
    assert judged(LEAVES, run).effect == pytest.approx(math.log10(4)), "measured where it ended"


@pytest.mark.parametrize("lost", ["sharpness", "test_accuracy", "barrier"])
@pytest.mark.parametrize("value", [math.nan, None])
def test_a_run_that_reached_it_and_was_not_measured_leaves_it_undecided(
    lost: str, value: float | None, tmp_path: Path
) -> None:
    own, other = ([end(-share, share, share)] * 3 for share in (0.3, 0.2))
    broken = {**own[0], lost: value}
    seeds = [own, other, [own[0], {name: number for name, number in broken.items() if number is not None}, own[2]]]
    run = run_of(tmp_path / "run", seeds)
    names = {"sharpness": FLATTER, "test_accuracy": GENERALISES, "barrier": LEAVES}
    for metric, name in names.items():
        veto = "diverged or not defined in 1 of 3 seeds" if metric == lost else None
        assert judged(name, run).veto == veto


def test_gradient_descent_is_that_of_each_runs_own_loss(tmp_path: Path) -> None:
    rows = run_of(tmp_path / "whole", [[end(-0.1), end(-0.5), end(-0.3)]] * 2).metrics().to_pylist()
    for entry in rows:
        if entry["metric"] == "gd_sharpness":
            entry["value"] = (4.0, 2.0, 1.0)[entry["replica"]]
    run = written(tmp_path / "run", "matched-loss", config(2, ["gd", "sgd"]), rows)
    assert judged(FLATTER, run).effect == pytest.approx((-0.1 - math.log(2) - 0.5 - 0.3 + math.log(2)) / 3)


def test_every_arm_is_judged_beside_gradient_descent_and_sgd(tmp_path: Path) -> None:
    rows = [entry for seed in range(2) for name in ALL for entry in all_at_once(seed, name)]
    findings = ledger([written(tmp_path / "run", "matched-loss", config(2, ALL), rows)])
    cases = {name: {f.result.case for f in findings if f.claim.name == name} for name in CLAIM}
    arms = {"arm-flatter-at-matched-loss", "arm-leaves-the-basin", "arm-generalises-at-matched-loss"}
    assert {name: found for name, found in cases.items() if found} == {
        **{name: {"sgd"} for name in (FLATTER, LEAVES, GENERALISES)},
        **{name: set(ARMS) for name in arms},
        "only-aligned-noise-flattens": {f"sgd and {name}" for name in UNALIGNED},
        "gaussian-as-flat-as-sgd": {"sgd and gld-full"},
        "noise-on-the-way-flattens": {"sgd and gd-after-sgd"},
        "start-makes-no-difference": {"sgd and sgd-from-initialisation"},
    }
    assert {f.claim.name for f in findings if not f.claim.exploratory} == {FLATTER, LEAVES, GENERALISES}


def test_only_seeds_in_which_both_ran_are_compared(tmp_path: Path) -> None:
    """An arm that only one of two pooled runs has."""

    def of(name: str, root: int, dynamics: Sequence[str], level: float) -> Run:
        rows: Rows = []
        for seed in range(2):
            rows += matched(seed, "sgd", [end(level)] * NOISE_SEEDS)
            rows += matched(seed, "gld-dynamic", [end(-0.1)]) if "gld-dynamic" in dynamics else []
        return written(tmp_path / name, "matched-loss", config(2, dynamics, root), rows)

    runs = [of("few", 1, ["gd", "sgd"], -0.2), of("more", 2, ["gd", "sgd", "gld-dynamic"], -0.4)]
    found = {(f.claim.name, f.result.case): f.result for f in ledger(runs)}
    assert (found[FLATTER, "sgd"].n, found[FLATTER, "sgd"].effect) == (4, pytest.approx(-0.3))
    assert found["arm-flatter-at-matched-loss", "gld-dynamic"].n == 2
    contrast = found["only-aligned-noise-flattens", "sgd and gld-dynamic"]
    assert (contrast.n, contrast.effect) == (2, pytest.approx(-0.3))


def beside_sgd(path: Path, arm: str, ratios: Sequence[float], stuck: int, settled: float = 1.0) -> Run:
    """SGD at log ratios of −2.7, an arm at these; the last seed's arm did not come down, or began unsettled."""
    rows: Rows = []
    for seed, ratio in enumerate(ratios):
        missed = seed >= len(ratios) - stuck
        reached = float(not missed or settled == 0.0)
        begun = settled if missed else 1.0
        rows += matched(seed, "sgd", [end(-2.7)] * NOISE_SEEDS, settled=begun)
        rows += matched(seed, arm, [end(ratio, reached=reached)], settled=begun)
    return written(path, "matched-loss", config(len(ratios), ["gd", "sgd", arm]), rows)


def test_a_censored_arm_is_no_evidence_that_sgd_is_flatter(tmp_path: Path) -> None:
    run = beside_sgd(tmp_path / "run", "gld-dynamic", [-1.26, -1.61, -1.75, -1.27, -3.18, 0.0], stuck=1)
    [result] = CLAIM["only-aligned-noise-flattens"].judge(Evidence.of(run))
    assert result.effect == pytest.approx((-1.44 - 1.09 - 0.95 - 1.43 + 0.48 + 0.0) / 6)
    assert result.verdict == "undecided"


@pytest.mark.parametrize("settled", [1.0, 0.0])
def test_no_equality_is_found_where_a_run_is_censored(settled: float, tmp_path: Path) -> None:
    ratios = [-2.7 + 0.01 * seed for seed in range(6)]
    claim = CLAIM["start-makes-no-difference"]
    [whole] = claim.judge(Evidence.of(beside_sgd(tmp_path / "0", "sgd-from-initialisation", ratios, 0)))
    [missed] = claim.judge(Evidence.of(beside_sgd(tmp_path / "1", "sgd-from-initialisation", ratios, 1, settled)))
    assert whole.verdict == "supported"
    assert missed.verdict == "undecided"
    reason = ", or gradient descent" if settled else " began in a minimum that did not settle"
    assert f"1 of 6 runs of sgd-from-initialisation{reason}" in str(missed.veto)


def test_flatness_on_the_layers_scale_is_judged_where_it_was_measured(tmp_path: Path) -> None:
    """Earlier runs have none."""
    runs = []
    for root, relative in ((1, {}), (2, {"relative_sharpness": math.exp(-0.5)})):
        rows = [
            entry
            for seed in range(3)
            for entry in matched(
                seed,
                "sgd",
                [end(-2.7) | relative] * NOISE_SEEDS,
                descent=AT_LEVEL | ({"relative_sharpness": 1.0 + 0.01 * seed} if relative else {}),
            )
        ]
        runs.append(written(tmp_path / str(root), "matched-loss", config(3, ["gd", "sgd"], root), rows))
    [result] = CLAIM["flatter-on-the-layers-scale"].judge(Evidence.of(*runs))
    assert (result.n, result.case, result.verdict) == (3, "sgd", "supported")
    assert result.effect == pytest.approx(-0.5 - math.log(1.01 * 1.02) / 3, abs=1e-4)
    assert CLAIM["flatter-on-the-layers-scale"].judge(Evidence.of(runs[0])) == []


def test_only_noise_that_is_given_a_trace_must_be_shown_to_have_it(tmp_path: Path) -> None:
    """That of SGD, and the Gaussian with its covariance, is of its own trace wherever it is."""
    arms = ["gd", "sgd", "gld-full", "gld-dynamic"]
    rows = [
        entry
        for seed in range(3)
        for name in arms[1:]
        for entry in matched(seed, name, [end(-0.3 - 0.01 * seed)] * (NOISE_SEEDS if name == "sgd" else 1))
        if entry["phase"] != "escape"
    ]
    run = written(tmp_path / "run", "matched-loss", config(3, arms), rows)
    assert judged(FLATTER, run).verdict == "supported"
    full, dynamic = CLAIM["arm-flatter-at-matched-loss"].judge(Evidence.of(run))
    assert (full.case, full.verdict) == ("gld-full", "supported")
    assert dynamic.veto == "the injected trace of gld-dynamic was not measured"


@pytest.mark.parametrize(("seeds", "verdict"), [(2, "undecided"), (5, "undecided"), (6, "contradicted")])
def test_barriers_too_small_to_tell_apart_are_judged_by_their_number(
    seeds: int, verdict: str, tmp_path: Path
) -> None:
    """All are taken for 0.001: an interval of no width, which says nothing of other seeds."""
    run = run_of(tmp_path / "run", [[end(barrier=1e-5 * (seed + 1))] * NOISE_SEEDS for seed in range(seeds)])
    found = judged(LEAVES, run)
    assert (found.verdict, found.p) == (verdict, 2.0 ** (1 - seeds))
    assert found.veto == (None if seeds == 6 else f"the same value in all {seeds} seeds, too few for a sign test")
