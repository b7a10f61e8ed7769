"""The noise-knob experiment at a tiny size: what a run leaves behind, and whether its numbers are right."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from noisescape.experiments.claims import ledger
from noisescape.experiments.noise_knob import ARMS, NOISE_KNOB, NoiseKnobConfig, noise_knob_problem
from noisescape.measurement import expected_sharpness
from noisescape.runs.run import Run
from run_files import check_report, files

SMALL = NoiseKnobConfig(
    seeds=2,
    clean=60,
    corrupted=12,
    steps=40,
    batch_size=16,
    small_batch_size=4,
    measure_every=5,
    sharpness_draws=4,
    seed=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return NOISE_KNOB.run(SMALL, tmp_path_factory.mktemp("knob") / "run", jobs=1, progress=False)


def recorded(run: Run, seed: int, name: str, metric: str) -> dict[int, float]:
    return {
        row["step"]: row["value"]
        for row in run.metrics().to_pylist()
        if (row["phase"], row["seed"], row["dynamics"], row["metric"]) == ("training", seed, name, metric)
    }


@pytest.mark.slow
def test_a_run_leaves_everything_behind(run: Run) -> None:
    assert run.complete
    assert files(run.path) >= {
        *("run.json", "metrics.parquet", "summary.json", "timing.json"),
        *("checkpoints/data.safetensors", "checkpoints/final.safetensors"),
    }
    assert not (run.path / "tasks").exists()
    assert run.info["config"] == json.loads(json.dumps(asdict(SMALL)))
    assert run.tensors("final").keys() == {f"{name}/seed-{seed}" for name in ARMS for seed in range(2)}


@pytest.mark.slow
def test_every_arm_starts_at_the_same_place_and_ends_where_it_says(run: Run) -> None:
    for seed in range(2):
        made = noise_knob_problem(SMALL, seed)
        start = float(made.risk.loss(made.risk.parameters()))
        for name in ARMS:
            theta = run.tensors("final")[f"{name}/seed-{seed}"]
            assert recorded(run, seed, name, "loss")[0] == pytest.approx(start, rel=1e-5)
            ends = {
                "loss": made.risk.loss(theta),
                "test_loss": made.test.loss(theta),
                "test_accuracy": made.test.accuracy(theta),
                "train_accuracy": made.risk.accuracy(theta),
                "sharpness/signed": expected_sharpness(made.risk, theta, delta=1e-2, draws=4).signed.value,
            }
            for metric, value in ends.items():
                assert recorded(run, seed, name, metric)[40] == pytest.approx(float(value), rel=1e-4), metric
    thetas = [run.tensors("final")[f"{name}/seed-0"] for name in ARMS]
    assert all(not torch.equal(one, other) for i, one in enumerate(thetas) for other in thetas[:i])


@pytest.mark.slow
def test_the_largest_eigenvalue_is_the_hessians(run: Run) -> None:
    """By power iteration in float64."""
    risk = noise_knob_problem(SMALL, 0).risk.to(torch.float64)
    theta = run.tensors("final")["as-if-small/seed-0"].double()
    vector = torch.randn(len(theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(600):
        vector = vector / vector.norm()
        product = risk.hvp(theta, vector)
        value = float(vector @ product)
        vector = product + 0.5 * vector  # so that the most positive one leads
    [found] = recorded(run, 0, "as-if-small", "largest_eigenvalue").values()
    assert found == pytest.approx(value, rel=2e-3)


@pytest.mark.slow
def test_noise_and_its_target_are_measured_at_the_same_steps(run: Run) -> None:
    risk = noise_knob_problem(SMALL, 0).risk
    theta = risk.parameters()
    for name in ARMS:
        steps = set() if name == "gradient-penalty" else {*range(0, 40, 5)}
        assert recorded(run, 0, name, "injected").keys() == steps
        assert recorded(run, 0, name, "trace_target").keys() == steps
        if steps:
            size = 16 if name == "large-batch" else 4
            start = recorded(run, 0, name, "trace_target")[0]
            assert start == pytest.approx(float(risk.noise_covariance(theta, size).trace()), rel=1e-4)


@pytest.mark.slow
def test_the_summary_is_of_what_was_recorded(run: Run) -> None:
    summary = run.summary()
    assert summary["final"].keys() == set(ARMS)
    ends = [recorded(run, seed, "as-if-small", "test_loss")[40] for seed in range(2)]
    assert summary["final"]["as-if-small"]["test_loss"]["value"] == pytest.approx(np.mean(ends))
    injected = [np.mean([*recorded(run, seed, "isotropic", "injected").values()]) for seed in range(2)]
    assert summary["injected_trace"]["isotropic"]["value"] == pytest.approx(np.mean(injected))
    assert summary["injected_trace"]["gradient-penalty"]["value"] == 0.0


@pytest.mark.slow
def test_a_report_is_self_contained_and_has_the_ledger(run: Run) -> None:
    page = check_report(run, {"learning_curves", "sharpness_accuracy"})
    for text in (
        "large as if small",
        "micro-gradient penalty",
        "Of 6 exploratory findings on controls",
        "whatever its batch size",
    ):
        assert text in page
    means = {
        step: np.mean([recorded(run, seed, "isotropic", "test_accuracy")[step] for seed in range(2)])
        for step in recorded(run, 0, "isotropic", "test_accuracy")
    }
    best = max(means, key=means.__getitem__)
    assert f"isotropic noise {means[best]:.1%} at step {best}" in page
    console = Console(width=120)
    with console.capture() as capture:
        console.print(NOISE_KNOB.summary_table(run.summary()))
    assert all(name in capture.get() for name in ARMS)
    assert [finding.claim.name for finding in ledger([run])] == [
        *("knob-trace", "batch-gap", "knob-over-large", "knob-as-small"),
        *("isotropic-does-not-recover", "penalty-recovers"),
    ]


def test_images_come_from_a_directory_where_one_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold fashion_mnist"):
        noise_knob_problem(replace(SMALL, data_dir=str(tmp_path)), 0)


def test_more_images_than_there_are_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the digits hold 1797"):
        NOISE_KNOB.run(replace(SMALL, clean=2000), tmp_path / "run", jobs=1, progress=False)
    assert not (tmp_path / "run").exists()
