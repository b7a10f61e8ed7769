"""Digits at a tiny size: what a run leaves behind, and whether its numbers are what they claim."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.digits import DIGITS, digits_problem
from noisescape.experiments.protocols import escape, session
from noisescape.experiments.statistics import derived_seed
from noisescape.experiments.toy_2d import TOY_2D
from noisescape.report import write_report
from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome
from run_files import SMALL, TINY, assert_same_results, check_report, files, recorded


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return DIGITS.run(SMALL, tmp_path_factory.mktemp("digits") / "run", jobs=1, progress=False)


@pytest.fixture
def copied(digits: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    shutil.copytree(digits.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def test_a_digits_run_leaves_everything_behind(digits: Run) -> None:
    assert digits.complete
    assert files(digits.path) >= {
        "run.json",
        "metrics.parquet",
        "summary.json",
        "timing.json",
        "checkpoints/data.safetensors",
        "checkpoints/minima.safetensors",
        "checkpoints/final.safetensors",
        "checkpoints/spectra.safetensors",
    }
    assert not (digits.path / "tasks").exists()
    assert digits.info["config"] == json.loads(json.dumps(asdict(SMALL)))
    assert digits.tensors("minima").keys() == {"seed-0"}
    assert digits.tensors("final").keys() == {f"{name}/seed-0" for name in SMALL.dynamics}
    assert {key.split("/")[1] for key in digits.tensors("spectra")} == {
        "hessian_eigenvalues",
        "noise_eigenvalues",
        "density_grid",
        "density",
        "density_stderr",
    }


def test_digits_metrics_are_tidy(digits: Run) -> None:
    rows = digits.metrics().to_pylist()
    assert set(rows[0]) == {"phase", "seed", "dynamics", "replica", "step", "metric", "value"}
    keys = {tuple(row[key] for key in ("phase", "seed", "dynamics", "step", "metric")) for row in rows}
    assert len(keys) == len(rows)
    assert {row["phase"] for row in rows} == {"descent", "minimum", "escape"}
    along = {row["metric"] for row in rows if row["metric"].startswith("along/")}
    assert along == {
        f"along/{name}"
        for name in (
            "trace_h_sigma",
            "trace_h_sigma_stderr",
            "isotropic_reference",
            "isotropic_reference_stderr",
            "projection_coefficient",
            "decay_exponent",
            "largest_eigenvalue",
        )
    }
    for name in along:
        assert set(recorded(digits, phase="descent", metric=name)) == {8, 15, 38, 75}
    assert set(recorded(digits, phase="minimum", metric="trace_h_sigma")) == {150}
    for name in ("gd", "sgd", "gld-top-eigenvector"):
        assert set(recorded(digits, phase="escape", dynamics=name, metric="loss")) == {*range(7)}
        assert set(recorded(digits, phase="escape", dynamics=name, metric="trace_target")) == {0, 3}
        injected = recorded(digits, phase="escape", dynamics=name, metric="injected")
        assert set(injected) == (set() if name == "gd" else {0, 3}), "at the same steps, so that both compare"


def test_what_was_injected_and_what_for_is_summed_up(digits: Run) -> None:
    summary = digits.summary()
    for name in ("sgd", "gld-top-eigenvector"):
        for metric, key in (("injected", "injected_trace"), ("trace_target", "target_trace")):
            values = recorded(digits, phase="escape", dynamics=name, metric=metric).values()
            assert summary[key][name]["value"] == pytest.approx(sum(values) / len(values))
    assert summary["injected_trace"]["gd"]["value"] == 0
    risk = digits_problem(SMALL, 0).risk
    trace = float(risk.noise_covariance(digits.tensors("minima")["seed-0"], SMALL.batch_size).trace())
    for name in SMALL.dynamics:
        start = recorded(digits, phase="escape", dynamics=name, metric="trace_target")[0]
        assert start == pytest.approx(trace, rel=1e-4)


def test_which_images_with_which_labels_can_be_read_from_the_run(digits: Run) -> None:
    from sklearn.datasets import load_digits

    kept = digits.tensors("data")
    assert kept.keys() == {f"seed-0/{name}" for name in ("rows", "labels", "corrupted", "test_rows")}
    rows, labels, corrupted, test_rows = (
        kept[f"seed-0/{name}"] for name in ("rows", "labels", "corrupted", "test_rows")
    )
    split = digits_problem(SMALL, 0).split
    assert torch.equal(rows, split.rows)
    assert torch.equal(labels, split.labels)
    assert corrupted.tolist() == [False] * 60 + [True] * 10
    assert sorted([*rows.tolist(), *test_rows.tolist()]) == list(range(1797))
    images, true = load_digits(return_X_y=True)
    assert labels[:60].tolist() == true[rows[:60]].tolist()
    assert_close(split.images.flatten(1).double(), torch.from_numpy(images)[rows] / 8 - 1)
    assert digits.summary()["data"]["train"]["rows"] == 1797


def test_the_minimum_is_where_gradient_descent_ends(digits: Run) -> None:
    problem = digits_problem(SMALL, 0)
    risk, test = problem.risk, problem.test
    theta = risk.parameters()
    for _ in range(150):
        theta = theta - 0.1 * risk.gradient(theta)
    minimum = digits.tensors("minima")["seed-0"]
    assert_close(minimum, theta, rtol=1e-3, atol=1e-4)
    descent = recorded(digits, phase="descent", metric="loss")
    assert descent[150] == pytest.approx(float(risk.loss(minimum)), rel=1e-5)
    assert descent[150] < descent[0]
    accuracy = recorded(digits, phase="descent", metric="test_accuracy")
    assert accuracy[150] == pytest.approx(float(test.accuracy(minimum)))
    for name in SMALL.dynamics:
        start = recorded(digits, phase="escape", dynamics=name, metric="loss")[0]
        assert start == pytest.approx(descent[150], rel=1e-5)
    after = minimum
    for _ in range(6):
        after = after - SMALL.lr * risk.gradient(after)
    assert_close(digits.tensors("final")["gd/seed-0"], after, rtol=1e-3, atol=1e-4)


def test_repetitions_have_data_and_networks_of_their_own() -> None:
    first = digits_problem(SMALL, 0).risk
    again = digits_problem(SMALL, 0).risk
    second = digits_problem(SMALL, 1).risk
    elsewhere = digits_problem(replace(SMALL, seed=3), 0).risk
    theta = first.parameters()
    assert torch.equal(theta, again.parameters())
    assert torch.equal(first.losses(theta), again.losses(theta))
    for other in (second, elsewhere):
        assert not torch.equal(theta, other.parameters())
        assert not torch.equal(first.losses(theta), other.losses(theta))
    split = corrupted_digits(seed=derived_seed(2, 0, 0), clean=60, corrupted=10)
    test = digits_problem(SMALL, 0).test
    assert (first.sample_count, test.sample_count) == (70, len(split.test_labels))


def test_what_is_measured_at_the_minimum_is_stored(digits: Run) -> None:
    [found] = digits.summary()["minimum"]
    stored = {row["metric"]: row["value"] for row in digits.metrics().to_pylist() if row["phase"] == "minimum"}
    assert stored == {name: found[name]["value"] for name in stored}
    assert len(stored) == 15
    risk = digits_problem(SMALL, 0).risk
    minimum = digits.tensors("minima")["seed-0"]
    assert found["trace_sigma"]["value"] == pytest.approx(
        float(risk.noise_covariance(minimum, 5).trace()), rel=1e-5
    )
    assert found["hessian_eigenvalues"] == digits.tensors("spectra")["seed-0/hessian_eigenvalues"].tolist()


def test_a_diverging_dynamics_is_recorded_and_the_run_goes_on(digits: Run) -> None:
    summary = digits.summary()
    assert torch.isnan(digits.tensors("final")["gld-constant/seed-0"]).all()
    assert summary["final"]["gld-constant"]["loss"]["value"] is None
    assert summary["sharpness_change"]["gld-constant"]["value"] is None
    for name in ("gd", "sgd", "gld-top-eigenvector"):
        assert math.isfinite(summary["final"][name]["loss"]["value"])
        before, after = (
            recorded(digits, phase="escape", dynamics=name, metric="sharpness/signed")[step] for step in (0, 6)
        )
        assert summary["sharpness_change"][name]["value"] == pytest.approx(after - before)
        assert summary["sharpness_change"][name]["low"] is None, "one seed has no interval"


def test_a_digits_report_is_self_contained(digits: Run) -> None:
    page = check_report(digits, {"learning_curves", "sharpness", "indicator", "spectra"})
    for text in ("1st eigenvector", "diverged", "Tr(HΣ)", "SGD"):
        assert text in page


def test_a_digits_table_names_every_dynamics(digits: Run) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(DIGITS.summary_table(digits.summary()))
    assert all(name in capture.get() for name in SMALL.dynamics)


@pytest.mark.slow
def test_figures_that_are_not_finite_do_not_stop_the_report(copied: Run) -> None:
    """JSON has no infinity: a decay exponent where λ_{k+1} ≤ 0, say, comes back as None."""
    summary = copied.summary()
    for name in ("decay_exponent", "noise_scale", "anisotropy", "projection_coefficient"):
        summary["minimum"][0][name] = dict.fromkeys(("value", "stderr", "low", "high"))
    copied.write_summary(summary)
    check_report(copied, {"learning_curves", "sharpness", "indicator", "spectra"})
    console = Console(width=120)
    with console.capture():
        console.print(DIGITS.summary_table(summary))


def test_changes_are_taken_within_a_seed_even_if_another_seed_diverged() -> None:
    """Seed 0 stopped early; seed 1 went from 10 to 12."""
    config = replace(SMALL, seeds=2, dynamics=("sgd",))
    seen = [(0, 0, 1.0), (0, 3, math.nan), (1, 0, 10.0), (1, 6, 12.0)]
    rows = [
        {"phase": "escape", "dynamics": "sgd", "metric": metric, "seed": seed, "step": step, "value": value}
        for seed, step, value in seen
        for metric in ("loss", "test_accuracy", "sharpness/signed", "sharpness/absolute", "injected")
    ]
    summary = escape.summarise(config, rows, [], {})
    assert summary["sharpness_change"]["sgd"]["value"] == 2.0
    assert summary["final"]["sgd"]["loss"]["value"] == 12.0
    assert summary["injected_trace"]["sgd"]["value"] == 11.0, "of the seed that stayed"


def test_a_diverging_descent_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    config = replace(SMALL, gd_steps=20, gd_lr=1e6)
    message = r"gradient descent diverged at step \d+ of repetition 0.* Lower gd_lr \(now 1e\+06\)"
    with pytest.raises(RuntimeError, match=message):
        DIGITS.run(config, tmp_path / "run", jobs=1, progress=False)
    assert files(tmp_path / "run") == {"run.json"}


@pytest.mark.slow
def test_a_failure_midway_leaves_no_summary_and_can_be_resumed(
    digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Outcome:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(escape, "survey", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            DIGITS.run(SMALL, tmp_path / "run", jobs=1, progress=False)
    run = Run.open(tmp_path / "run")
    assert not run.complete
    finished = ["descent-0", *(f"escape-{name}-0" for name in SMALL.dynamics)]
    assert files(run.path) == {"run.json", *(f"tasks/{key}.done.safetensors" for key in finished)}
    with pytest.raises(FileNotFoundError, match="did not finish"):
        write_report(run)

    with monkeypatch.context() as patch:
        patch.setattr(escape, "descend", broken)
        patch.setattr(escape, "leave", broken)
        resumed = DIGITS.run(SMALL, run.path, jobs=1, resume=True, progress=False)
    assert resumed.complete
    assert_same_results(resumed, digits, checkpoints=("data", "minima", "final", "spectra"))
    assert files(resumed.path) == files(digits.path) - {
        name for name in files(digits.path) if name.startswith(("figures", "report"))
    }


def test_a_complete_run_is_not_run_again(digits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "perform", pytest.fail)
    before = {name: (digits.path / name).stat().st_mtime_ns for name in files(digits.path)}
    assert DIGITS.run(SMALL, digits.path, resume=True, progress=False) == digits
    assert before == {name: (digits.path / name).stat().st_mtime_ns for name in files(digits.path)}


def test_a_run_is_not_continued_with_other_constants(copied: Run) -> None:
    with pytest.raises(ValueError, match=r"cannot be continued with other constants: lr = 0\.07 there, 0\.05 now"):
        DIGITS.run(replace(SMALL, lr=0.05), copied.path, resume=True, progress=False)
    with pytest.raises(ValueError, match="is a run of 'digits', not of 'toy-2d'"):
        TOY_2D.run(TINY, copied.path, resume=True, progress=False)
    assert files(copied.path) >= {"run.json", "metrics.parquet", "summary.json"}


@pytest.mark.parametrize("which", ["toy", "digits"])
def test_an_occupied_directory_is_refused_and_untouched(which: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    experiments = {"toy": (TOY_2D, TINY), "digits": (DIGITS, SMALL)}
    experiment, config = experiments[which]
    with pytest.raises(FileExistsError, match="not empty"):
        experiment.run(config, tmp_path, jobs=1, progress=False)
    assert files(tmp_path) == {"mine.txt"}
