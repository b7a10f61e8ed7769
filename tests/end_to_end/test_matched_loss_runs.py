"""The matched-loss experiment at a tiny size: what a run leaves behind, and whether its numbers are right."""

from __future__ import annotations

import io
import json
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import noisescape as ns
from noisescape.experiments.claims import ledger
from noisescape.experiments.matched_loss import ARMS, MATCHED_LOSS, MatchedLossConfig, matched_loss_problem
from noisescape.experiments.protocols.matched_loss import Returned
from noisescape.experiments.statistics import derived_seed
from noisescape.report.matched_loss import ARMS as LABEL
from noisescape.report.matched_loss import pooled_figures
from noisescape.runs.run import Run
from noisescape.simulation.records import Record
from noisescape.theory import basin
from run_files import check_report, files

SMALL = MatchedLossConfig(
    seeds=2,
    noise_seeds=2,
    data="digits",
    clean=60,
    corrupted=12,
    gd_steps=300,
    settled_gradient=0.5,
    settle_steps=100,
    steps=150,
    batch_size=6,
    k=3,
    left=0.02,
    quench_steps=400,
    curve_steps=200,
    sharpness_draws=20,
    dynamics=ARMS,
    seed=2,
)
RUNS = [(name, noise) for name in ARMS if name != "gd" for noise in range(2 if name == "sgd" else 1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return MATCHED_LOSS.run(SMALL, tmp_path_factory.mktemp("matched") / "run", jobs=1, progress=False)


@pytest.fixture(scope="module")
def rows(run: Run) -> list[dict[str, Any]]:
    return run.metrics().to_pylist()


def matched(rows: list[dict[str, Any]], seed: int, name: str, noise: int) -> dict[str, float]:
    return {
        row["metric"]: row["value"]
        for row in rows
        if (row["phase"], row["seed"], row["dynamics"], row["replica"]) == ("matched", seed, name, noise)
    }


def curve(rows: list[dict[str, Any]], seed: int, name: str, noise: int, metric: str) -> dict[int, float]:
    return {
        row["step"]: row["value"]
        for row in rows
        if (row["phase"], row["seed"], row["dynamics"], row["replica"], row["metric"])
        == ("escape", seed, name, noise, metric)
    }


@pytest.mark.slow
def test_a_run_leaves_everything_behind(run: Run) -> None:
    assert run.complete
    assert files(run.path) >= {
        *("run.json", "metrics.parquet", "summary.json", "timing.json"),
        *(f"checkpoints/{name}.safetensors" for name in ("data", "minima", "final", "matched", "matched@0.3")),
    }
    assert not (run.path / "tasks").exists()
    assert run.info["config"] == json.loads(json.dumps(asdict(SMALL)))
    assert run.tensors("minima").keys() == {"seed-0", "seed-1"}
    assert run.tensors("final").keys() == {
        f"{name}/seed-{seed}/noise-{noise}" for name, noise in RUNS for seed in range(2)
    }


@pytest.mark.slow
def test_the_minimum_is_where_its_figures_say(run: Run, rows: list[dict[str, Any]]) -> None:
    for seed in range(2):
        made = matched_loss_problem(SMALL, seed)
        theta = run.tensors("minima")[f"seed-{seed}"]
        found = {row["metric"]: row["value"] for row in rows if (row["phase"], row["seed"]) == ("minimum", seed)}
        exact = made.risk.to(torch.float64).hessian(theta.double())
        assert found["loss"] == pytest.approx(float(made.risk.loss(theta)), rel=1e-6)
        assert found["gradient_norm"] == pytest.approx(float(made.risk.gradient(theta).norm()), rel=1e-5)
        assert found["largest_eigenvalue"] == pytest.approx(float(ns.eigenpairs(exact, 1).values[0]), rel=1e-3)
        assert found["test_accuracy"] == pytest.approx(float(made.test.accuracy(theta)))
        assert found["settled"] == (
            found["gradient_norm"] < 0.5 and found["largest_eigenvalue"] < SMALL.settled_stability / SMALL.lr
        )


@pytest.mark.slow
def test_all_are_compared_at_the_level_or_below_and_gradient_descent_at_their_own_loss(
    rows: list[dict[str, Any]],
) -> None:
    compared = 0
    for seed in range(2):
        level = next(
            row["value"] for row in rows if (row["phase"], row["seed"], row["metric"]) == ("minimum", seed, "loss")
        )
        for name, noise in RUNS:
            found = matched(rows, seed, name, noise)
            for share, suffix in ((1.0, ""), (0.3, "@0.3")):
                if not found[f"reached{suffix}"]:
                    assert f"sharpness{suffix}" not in found
                    continue
                assert found[f"loss{suffix}"] <= share * level * (1 + 2e-4)
                if found[f"quench_steps{suffix}"]:
                    assert found[f"loss{suffix}"] == pytest.approx(share * level, rel=2e-4)
                if found[f"gd_reached{suffix}"]:
                    assert found[f"gd_loss{suffix}"] == pytest.approx(found[f"loss{suffix}"], rel=3e-4)
                    compared += 1
    assert compared > len(RUNS), "or nothing was tested"


@pytest.mark.slow
def test_gradient_descents_figures_are_those_of_its_own_way_on(run: Run, rows: list[dict[str, Any]]) -> None:
    """From the minimum to the loss of SGD's first run; the quench may stop on the way, at another's."""
    made, theta = matched_loss_problem(SMALL, 0), run.tensors("minima")["seed-0"]
    found = matched(rows, 0, "sgd", 0)
    assert found["reached"] == 1
    there = basin.quench(made.risk, theta, level=found["loss"], lr=SMALL.lr, steps=SMALL.quench_steps).theta
    sharpness = ns.expected_sharpness(made.risk, there, delta=1e-2, draws=20, seed=derived_seed(2, 0, 3)).signed
    assert found["gd_sharpness"] == pytest.approx(sharpness.value, rel=0.02)
    assert found["gd_test_accuracy"] == pytest.approx(float(made.test.accuracy(there)), abs=0.005)


@pytest.mark.slow
def test_sgd_ends_where_it_has_left_and_come_back(rows: list[dict[str, Any]]) -> None:
    for seed in range(2):
        for noise in range(2):
            losses = curve(rows, seed, "sgd", noise, "loss")
            taken = matched(rows, seed, "sgd", noise)["taken"]
            left = [step for step, loss in losses.items() if loss > losses[0] + SMALL.left]
            back = [step for step, loss in losses.items() if left and step > left[0] and loss <= losses[0]]
            assert taken == (back[0] if back else SMALL.steps)


@pytest.mark.slow
def test_the_yoked_arms_take_as_many_steps_as_sgd_at_the_trace_its_noise_had(rows: list[dict[str, Any]]) -> None:
    for seed in range(2):
        taken = matched(rows, seed, "sgd", 0)["taken"]
        known = curve(rows, seed, "sgd", 0, "trace_target")
        assert {0, 2, 4, 20, 40} <= known.keys()
        for name in ("gld-dynamic", "gld-diagonal", "gld-shuffled-within-layers", "gld-leading"):
            assert matched(rows, seed, name, 0)["taken"] == taken
            targets = curve(rows, seed, name, 0, "trace_target")
            injected = curve(rows, seed, name, 0, "injected")
            assert targets.keys() == injected.keys()
            for step, target in targets.items():
                assert target == pytest.approx(np.interp(step, [*known], [*known.values()]), rel=1e-6)
        for name in ("gld-dynamic", "gld-diagonal"):  # ‖ε‖² of thousands of directions hardly scatters
            targets, injected = (curve(rows, seed, name, 0, metric) for metric in ("trace_target", "injected"))
            assert sum(injected.values()) == pytest.approx(sum(targets.values()), rel=0.15)


@pytest.mark.slow
def test_the_trace_of_sgd_is_that_of_its_covariance_at_the_minimum(run: Run, rows: list[dict[str, Any]]) -> None:
    made, theta = matched_loss_problem(SMALL, 1), run.tensors("minima")["seed-1"]
    exact = made.risk.noise_covariance(theta, SMALL.batch_size).trace()
    assert curve(rows, 1, "sgd", 0, "trace_target")[0] == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.slow
def test_the_barrier_is_over_the_segment_from_the_minimum(run: Run, rows: list[dict[str, Any]]) -> None:
    for suffix in ("", "@0.3"):
        for seed in range(2):
            made, minimum = matched_loss_problem(SMALL, seed), run.tensors("minima")[f"seed-{seed}"]
            for name, noise in RUNS:
                found = matched(rows, seed, name, noise)
                there = run.tensors(f"matched{suffix}").get(f"{name}/seed-{seed}/noise-{noise}")
                assert (there is not None) == bool(found[f"reached{suffix}"])
                if there is not None:
                    assert found[f"barrier{suffix}"] == pytest.approx(
                        basin.barrier(made.risk, minimum, there), abs=1e-6
                    )
                    assert found[f"distance{suffix}"] == pytest.approx(float((there - minimum).norm()), rel=1e-5)


@pytest.mark.slow
def test_what_was_compared_is_kept_and_is_where_its_figures_say(run: Run, rows: list[dict[str, Any]]) -> None:
    made = matched_loss_problem(SMALL, 1)
    seed = derived_seed(2, 1, 3)
    for name in ("sgd", "gld-full", "gld-dynamic"):
        found, theta = matched(rows, 1, name, 0), run.tensors("matched")[f"{name}/seed-1/noise-0"]
        scaled = ns.layer_relative_sharpness(made.risk, theta, delta=0.1, draws=20, seed=seed).signed
        assert found["loss"] == pytest.approx(float(made.risk.loss(theta)), rel=1e-6)
        assert found["relative_sharpness"] == pytest.approx(scaled.value, rel=1e-6)
        assert found["parameter_norm"] == pytest.approx(float(theta.norm()), rel=1e-6)


@pytest.mark.slow
def test_a_batch_is_sharper_than_the_whole_at_the_minimum(run: Run, rows: list[dict[str, Any]]) -> None:
    made, theta = matched_loss_problem(SMALL, 1), run.tensors("minima")["seed-1"]
    draw = torch.Generator().manual_seed(derived_seed(2, 1, 4))
    dense = []
    for _ in range(32):
        chosen = torch.randint(72, (SMALL.batch_size,), generator=draw)
        pair = made.split.images[chosen], made.split.labels[chosen]
        batch = made.risk.with_data(pair).to(torch.float64)
        dense.append(float(ns.eigenpairs(batch.to(torch.float64).hessian(theta.double()), 1).values[0]))
    found = {row["metric"]: row["value"] for row in rows if (row["phase"], row["seed"]) == ("minimum", 1)}
    assert found["batch_eigenvalue"] == pytest.approx(statistics.median(dense), rel=1e-3)
    assert found["batch_eigenvalue"] > found["largest_eigenvalue"]


@pytest.mark.slow
def test_the_controls_set_out_as_they_are_called(rows: list[dict[str, Any]]) -> None:
    for seed in range(2):
        sgd, brief = (curve(rows, seed, name, 0, "loss") for name in ("sgd", "gd-after-sgd"))
        assert max(brief) == 50
        common = sgd.keys() & brief.keys()
        assert len(common) > 1
        assert {step: brief[step] for step in common} == {step: sgd[step] for step in common}
        made = matched_loss_problem(SMALL, seed)
        begun = curve(rows, seed, "sgd-from-initialisation", 0, "loss")
        assert begun[0] == pytest.approx(float(made.risk.loss(made.risk.parameters())), rel=1e-6)
        slow = curve(rows, seed, "sgd-small-rate", 0, "loss")
        assert slow[0] == sgd[0]
        assert max(slow.values()) < max(sgd.values())


@pytest.mark.slow
def test_the_first_run_of_sgd_goes_on_for_its_curve(rows: list[dict[str, Any]]) -> None:
    assert max(curve(rows, 0, "sgd", 0, "loss")) == SMALL.curve_steps
    assert max(curve(rows, 0, "sgd", 1, "loss")) <= SMALL.steps


@pytest.mark.slow
def test_the_summary_is_of_the_rows(run: Run, rows: list[dict[str, Any]]) -> None:
    found = run.summary()["compared"]
    assert found.keys() == {f"{name}{level}" for name in ARMS if name != "gd" for level in ("", "@0.3")}
    values = []
    for seed in range(2):
        own = [matched(rows, seed, "sgd", noise) for noise in range(2)]
        own = [one for one in own if one["reached"] and one["gd_reached"]]
        values.append(np.mean([math.log(one["sharpness"] / one["gd_sharpness"]) for one in own]))
    assert found["sgd"]["log_sharpness_ratio"]["value"] == pytest.approx(np.mean(values), rel=1e-9)
    assert found["sgd"]["runs"] == 4


@pytest.mark.slow
def test_the_ledger_and_the_report_are_made(run: Run) -> None:
    findings = [finding for finding in ledger([run]) if finding.claim.family == "primary"]
    assert {finding.claim.name for finding in findings} == {
        "flatter-at-matched-loss",
        "leaves-the-basin",
        "generalises-at-matched-loss",
    }
    assert all(finding.result.verdict == "undecided" for finding in findings), "two seeds are before the first look"
    check_report(run, {"sharpness", "barriers", "learning_curves", "two_phases"})


@pytest.mark.slow
def test_runs_of_other_seeds_and_arms_are_drawn_together(run: Run, tmp_path: Path) -> None:
    other = replace(SMALL, seed=3, seeds=1, dynamics=("gd", "sgd"))
    figures = pooled_figures([run, MATCHED_LOSS.run(other, tmp_path / "run", jobs=1, progress=False)])
    assert figures.keys() == {"sharpness", "barriers", "learning_curves", "two_phases"}
    axis = figures["barriers"].axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    points = [np.size(line.get_xdata()) for line in axis.lines if line.get_marker() == "o"]
    assert dict(zip(labels, points, strict=True)) == {
        LABEL[name]: 3 * 2 if name == "sgd" else 2 for name in ARMS if name != "gd"
    }


@pytest.mark.slow
def test_the_table_fits_a_terminal(run: Run) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(MATCHED_LOSS.summary_table(run.summary()))
    text = console.export_text()
    assert "gld-shuffled-within-layers" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("losses", "ended"),
    [
        ([0.1, 0.1, 0.09], False),  # never left
        ([0.1, 0.5, 0.2], False),  # not back
        ([0.1, 0.5, 0.1], True),
        ([0.1, 0.5, 0.05, 0.3], True),
        ([0.1, 0.09, 0.5], False),  # below before it left
        ([0.1, math.nan, 0.09], False),
    ],
)
def test_an_arm_has_returned_once_it_has_left_and_is_at_the_level(losses: list[float], ended: bool) -> None:
    records = {"loss": Record(torch.arange(len(losses)), torch.tensor(losses, dtype=torch.float64))}
    assert Returned(left=0.3, level=0.1)(records) is ended


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics": ("gd",)}, "dynamics must have sgd"),
        ({"dynamics": ("gd", "sgd", "gld-constant")}, "unknown arm 'gld-constant'"),
        ({"dynamics": ("gd", "sgd", "gld-ful")}, "did you mean gld-full"),
        ({"data": "digit"}, "unknown data set 'digit'"),
        ({"data_dir": "somewhere"}, "scikit-learn's digits: leave out somewhere"),
        ({"levels": (0.3, 1.0)}, "levels are positive shares"),
        ({"levels": ()}, "levels are positive shares"),
        ({"noise_seeds": 0}, "noise_seeds must be at least 1"),
        ({"left": 0.0}, "left must be positive"),
    ],
)
def test_constants_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_what_does_not_fit_the_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.D"):
        MATCHED_LOSS.run(replace(SMALL, k=10_000), tmp_path / "run", jobs=1, progress=False)
    assert list(tmp_path.iterdir()) == []
