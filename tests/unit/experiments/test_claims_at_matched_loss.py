"""The claims at matched loss: what counts of several runs, and of those that did not reach the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from claim_runs import ALL, ARMS, CLAIM, NOISE_SEEDS, STEPS, Rows, all_at_once, matched, row, traces, written
from noisescape.experiments.claims import Evidence, Result, ledger
from noisescape.runs.run import Run

End = dict[str, float]
BASE = {"sharpness": 2.0, "test_accuracy": 0.7, "barrier": 0.0}


def end(log_ratio: float = 0.0, gain: float = 0.0, barrier: float = 0.2, reached: float = 1.0) -> End:
    """Where a run came to, beside gradient descent at BASE."""
    return {
        "reached": reached,
        "sharpness": 2.0 * math.exp(log_ratio),
        "test_accuracy": 0.7 + gain,
        "barrier": barrier,
    }


def run_of(path: Path, seeds: Sequence[Sequence[End]], base: Sequence[End] | None = None) -> Run:
    rows = [
        entry
        for seed, own in enumerate(seeds)
        for entry in (*matched(seed, "sgd", own), *matched(seed, "gd", [base[seed] if base else BASE]))
    ]
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
    run = run_of(tmp_path / "run", [own, own, own[:2]])
    assert judged(FLATTER, run).effect == pytest.approx(-(0.3 + 0.3 + 0.2) / 3)
    assert judged(LEAVES, run).veto == "diverged or not defined in 1 of 3 seeds", "no barrier was measured there"


@pytest.mark.parametrize(("missed", "vetoed"), [(3, False), (4, True)])
def test_more_than_a_fifth_that_did_not_reach_it_are_a_veto(missed: int, vetoed: bool, tmp_path: Path) -> None:
    runs = [end(-0.3 + 0.01 * place, reached=float(place >= missed)) for place in range(15)]
    run = run_of(tmp_path / "run", [runs[place : place + 3] for place in range(0, 15, 3)])
    for name in (FLATTER, LEAVES, GENERALISES):
        veto = judged(name, run).veto
        assert veto == ("4 of 15 runs of sgd did not reach the level of loss" if vetoed else None)


def test_gradient_descent_that_did_not_reach_it_is_a_veto(tmp_path: Path) -> None:
    own = [end(-0.3), end(-0.2), end(-0.1)]
    run = run_of(tmp_path / "run", [own] * 12, base=[*[BASE] * 11, {**BASE, "reached": 0.0}])
    for name in (FLATTER, LEAVES, GENERALISES):
        assert judged(name, run).veto == (
            "gradient descent did not reach the level of loss beside 3 of 36 runs of sgd"
        )
    assert judged(FLATTER, run).effect == pytest.approx(-0.2 * 11 / 12)


@pytest.mark.parametrize("lost", ["sharpness", "test_accuracy", "barrier"])
@pytest.mark.parametrize("value", [math.nan, None])
def test_a_run_that_reached_it_and_was_not_measured_leaves_it_undecided(
    lost: str, value: float | None, tmp_path: Path
) -> None:
    own = [end(-0.3), end(-0.2), end(-0.1)]
    broken = {**end(-0.2), lost: value}
    seeds = [own, own, [own[0], {name: number for name, number in broken.items() if number is not None}, own[2]]]
    run = run_of(tmp_path / "run", seeds)
    names = {"sharpness": FLATTER, "test_accuracy": GENERALISES, "barrier": LEAVES}
    for metric, name in names.items():
        veto = "diverged or not defined in 1 of 3 seeds" if metric == lost else None
        assert judged(name, run).veto == veto


def test_gradient_descent_may_be_measured_at_each_runs_own_loss(tmp_path: Path) -> None:
    """Then its figures stand beside the run's, and there are none of an arm of its own."""
    own = [end(-0.1, 0.01), end(-0.5, 0.02), end(-0.3, 0.03)]
    bases = [4.0, 2.0, 1.0]
    rows = [
        entry
        for seed in range(2)
        for entry in (
            *matched(seed, "sgd", own),
            *(
                row("matched", seed, "sgd", STEPS, f"gd_{metric}", value, replica)
                for replica, base in enumerate(bases)
                for metric, value in {"reached": 1.0, "sharpness": base, "test_accuracy": 0.6}.items()
            ),
        )
    ]
    run = written(tmp_path / "run", "matched-loss", config(2, ["gd", "sgd"]), rows)
    expected = [log + math.log(2.0 / base) for log, base in zip((-0.1, -0.5, -0.3), bases, strict=True)]
    assert judged(FLATTER, run).effect == pytest.approx(sum(expected) / 3)
    assert judged(GENERALISES, run).effect == pytest.approx(0.12)
    # where a run did not reach the loss there is none to measure gradient descent at: that is not its miss
    kept = [entry for entry in rows if (entry["seed"], entry["replica"]) != (1, 0)]
    kept += [row("matched", 1, "sgd", STEPS, "reached", 0.0)]
    found = judged(FLATTER, written(tmp_path / "missed", "matched-loss", config(2, ["gd", "sgd"]), kept))
    assert found.veto is None, "one of six"
    assert found.effect == pytest.approx((sum(expected) / 3 + sum(expected[1:]) / 3) / 2)


def test_every_arm_is_judged_beside_gradient_descent_and_sgd(tmp_path: Path) -> None:
    rows = [entry for seed in range(2) for name in ALL for entry in all_at_once(seed, name)]
    findings = ledger([written(tmp_path / "run", "matched-loss", config(2, ALL), rows)])
    cases = {name: {f.result.case for f in findings if f.claim.name == name} for name in CLAIM}
    arms = {"arm-flatter-at-matched-loss", "arm-leaves-the-basin", "arm-generalises-at-matched-loss"}
    assert {name: found for name, found in cases.items() if found} == {
        **{name: {"sgd"} for name in (FLATTER, LEAVES, GENERALISES)},
        **{name: set(ARMS) for name in arms},
        "only-aligned-noise-flattens": {
            f"sgd and {name}" for name in ("gld-constant", "gld-dynamic", "gld-diagonal", "gld-shuffled")
        },
        "gaussian-as-flat-as-sgd": {"sgd and gld-full"},
    }
    assert {f.claim.name for f in findings if not f.claim.exploratory} == {FLATTER, LEAVES, GENERALISES}


def test_only_seeds_in_which_both_ran_are_compared(tmp_path: Path) -> None:
    """An arm that only one of two pooled runs has."""

    def of(name: str, root: int, dynamics: Sequence[str], level: float) -> Run:
        rows: Rows = []
        for seed in range(2):
            rows += matched(seed, "gd", [BASE])
            rows += matched(seed, "sgd", [end(level)] * NOISE_SEEDS)
            rows += matched(seed, "gld-dynamic", [end(-0.1)]) if "gld-dynamic" in dynamics else []
        return written(tmp_path / name, "matched-loss", config(2, dynamics, root), rows)

    runs = [of("few", 1, ["gd", "sgd"], -0.2), of("more", 2, ["gd", "sgd", "gld-dynamic"], -0.4)]
    found = {(f.claim.name, f.result.case): f.result for f in ledger(runs)}
    assert (found[FLATTER, "sgd"].n, found[FLATTER, "sgd"].effect) == (4, pytest.approx(-0.3))
    assert found["arm-flatter-at-matched-loss", "gld-dynamic"].n == 2
    contrast = found["only-aligned-noise-flattens", "sgd and gld-dynamic"]
    assert (contrast.n, contrast.effect) == (2, pytest.approx(-0.3))


def test_the_trace_of_sgd_itself_is_what_others_are_given(tmp_path: Path) -> None:
    """Off or not measured it vetoes nothing; that of any other noise does."""
    rows = [
        entry
        for seed in range(3)
        for entry in (
            *matched(seed, "gd", [BASE]),
            *(e for e in matched(seed, "sgd", [end(-0.3 - 0.01 * seed)] * NOISE_SEEDS) if e["phase"] == "matched"),
            *(e for e in matched(seed, "gld-full", [end(-0.2 + 0.01 * seed)]) if e["phase"] == "matched"),
        )
    ]
    arms = ["gd", "sgd", "gld-full"]
    run = written(tmp_path / "run", "matched-loss", config(3, arms), rows)
    assert judged(FLATTER, run).verdict == "supported"
    [bare] = CLAIM["arm-flatter-at-matched-loss"].judge(Evidence.of(run))
    assert bare.veto == "the injected trace of gld-full was not measured"
    shown = [*rows, *(entry for seed in range(3) for entry in traces("escape", seed, "gld-full", 1.0))]
    [found] = CLAIM["arm-flatter-at-matched-loss"].judge(
        Evidence.of(written(tmp_path / "shown", "matched-loss", config(3, arms), shown))
    )
    assert (found.verdict, found.veto) == ("supported", None)
