"""The experiment on the quantities at a tiny size: what a run leaves behind, and whether its numbers are right."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import noisescape as ns
from noisescape.experiments.curves import Curves
from noisescape.experiments.protocols.quantities import _correlation
from noisescape.experiments.quantities import QUANTITIES, QuantitiesConfig, quantities_problem
from noisescape.experiments.statistics import fisher_z, rank_correlation
from noisescape.report import write_report
from noisescape.runs.run import Run
from run_files import Fetched, files

SMALL = QuantitiesConfig(
    activation="gelu",
    seeds=2,
    gd_steps=40,
    lr=0.2,
    steps=12,
    batch_sizes=(3, 12),
    rates=(0.005, 1.0),
    draws=6,
    clean=30,
    corrupted=6,
    measure_every=6,
    landmarks=(0.0,),
    k=2,
    compared=2,
    rtol=0.5,
    max_products=20,
    sharpness_draws=4,
    seed=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return QUANTITIES.run(SMALL, tmp_path_factory.mktemp("quantities") / "run", jobs=1, progress=False)


def recorded(run: Run, phase: str, seed: int, size: int, metric: str) -> dict[int, float]:
    return {
        row["step"]: row["value"]
        for row in run.metrics().to_pylist()
        if (row["phase"], row["seed"], row["batch_size"], row["metric"]) == (phase, seed, size, metric)
    }


@pytest.mark.slow
def test_a_run_leaves_everything_behind(run: Run) -> None:
    assert run.complete
    assert files(run.path) >= {
        *("run.json", "metrics.parquet", "summary.json", "timing.json"),
        *("checkpoints/data.safetensors", "checkpoints/minima.safetensors", "checkpoints/final.safetensors"),
    }
    assert not (run.path / "tasks").exists()
    assert run.info["config"] == json.loads(json.dumps(asdict(SMALL)))
    assert run.tensors("minima").keys() == {"seed-0", "seed-1"}
    assert run.tensors("final").keys() == {f"batch-{size}/seed-{seed}" for size in (3, 12) for seed in range(2)}
    keys = [
        tuple(row[key] for key in ("phase", "seed", "batch_size", "step", "metric"))
        for row in run.metrics().to_pylist()
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
def test_gradient_descent_ends_at_the_minimum_with_a_rate_that_fell_to_zero(run: Run) -> None:
    made = quantities_problem(SMALL, 1)
    theta = made.risk.parameters()
    for step in range(40):
        theta = theta - 0.1 * min(1.0, (40 - step) / 10) * made.risk.gradient(theta)
    torch.testing.assert_close(run.tensors("minima")["seed-1"], theta, rtol=1e-4, atol=1e-6)
    assert SMALL.gd_rate(0) == SMALL.gd_rate(30) == 0.1
    assert SMALL.gd_rate(40) == 0


@pytest.mark.slow
def test_every_run_starts_at_the_minimum_and_what_is_measured_there_is_right(run: Run) -> None:
    made = quantities_problem(SMALL, 0)
    risk, theta = made.risk, run.tensors("minima")["seed-0"]
    hessian = risk.to(torch.float64).hessian(theta.double())
    rows = risk.to(torch.float64).per_sample_gradients(theta.double())
    gradient, centred = rows.mean(0), rows - rows.mean(0)
    trace_hc = float((centred.T * (hessian @ centred.T)).sum() / len(rows))
    for size in (3, 12):
        start = {
            "loss": float(risk.loss(theta)),
            "test_accuracy": float(made.test.accuracy(theta)),
            "gradient/squared_norm": float(gradient @ gradient),
            "gradient/curvature": float(gradient @ (hessian @ gradient)),
            "trace_c": float(centred.square().sum() / len(rows)),
        }
        for metric, value in start.items():
            assert recorded(run, "sgd", 0, size, metric)[0] == pytest.approx(value, rel=1e-3), metric
        for name, error in (
            ("indicator/value", "indicator/stderr"),
            ("conditions/trace_h_sigma", "conditions/trace_h_sigma_stderr"),
        ):
            found, stderr = (recorded(run, "sgd", 0, size, metric)[0] for metric in (name, error))
            assert abs(found - trace_hc / size) < 4.5 * stderr + 1e-3 * trace_hc / size
            assert stderr < 0.6 * found
    trace_c = float(centred.square().sum() / len(rows))
    assert recorded(run, "minimum", 0, 0, "trace/C")[40] == pytest.approx(trace_c, rel=1e-3)


@pytest.mark.slow
def test_everything_is_measured_where_it_is_due(run: Run) -> None:
    for size in (3, 12):
        for metric in ("loss", "gradient/squared_norm"):
            assert [*recorded(run, "sgd", 1, size, metric)] == [*range(13)]
        for metric in ("indicator/value", "sharpness/signed", "test_accuracy", "account/actual"):
            assert [*recorded(run, "sgd", 1, size, metric)] == [0, 6, 12]
        for metric in ("conditions/projection_coefficient", "alignment/gain", "step/drawn"):
            assert [*recorded(run, "sgd", 1, size, metric)] == [0, 12]
        assert [*recorded(run, "sgd", 1, size, "matrices/cosine/C/H")] == [12]


@pytest.mark.slow
def test_the_intervals_of_cosines_and_overlaps_stay_in_their_range(run: Run) -> None:
    found = {
        (place, name): figure
        for place, figures in run.summary()["matrices"].items()
        for name, figure in figures.items()
        if name.startswith(("cosine", "overlap"))
    }
    assert len(found) == 3 * 6
    for figure in found.values():
        assert -1 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 + 1e-6


@pytest.mark.slow
def test_the_account_adds_up(run: Run) -> None:
    for size in (3, 12):
        of_loss = recorded(run, "sgd", 0, size, "loss")
        squares = recorded(run, "sgd", 0, size, "gradient/squared_norm")
        found = {
            term: recorded(run, "sgd", 0, size, f"account/{term}")
            for term in ("descent", "curvature", "noise", "predicted", "actual", "remainder")
        }
        for step in (0, 6, 12):
            assert found["actual"][step] == pytest.approx(of_loss[step] - of_loss[0], abs=1e-7)
            assert found["descent"][step] == pytest.approx(-0.2 * sum(squares[t] for t in range(step)), rel=1e-6)
            three = found["descent"][step] + found["curvature"][step] + found["noise"][step]
            assert found["predicted"][step] == pytest.approx(three, rel=1e-9, abs=1e-12)
            assert found["remainder"][step] == pytest.approx(found["actual"][step] - three, rel=1e-9, abs=1e-12)
        assert found["noise"][12] > 0


@pytest.mark.slow
def test_a_tiny_step_of_a_smooth_network_changes_what_its_budget_says(run: Run) -> None:
    """η = 10⁻³, at a place where the gradient is not 0."""
    for size in ("3", "12"):
        found = run.summary()["single_steps"][size]["0.005"]
        assert found["drawn_over_predicted"]["value"] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_the_summary_is_of_what_was_recorded(run: Run) -> None:
    summary = run.summary()
    ends = [recorded(run, "sgd", seed, 3, "account/remainder")[12] for seed in range(2)]
    assert summary["account"]["3"]["remainder"]["value"] == pytest.approx(np.mean(ends))
    late = [
        np.mean([value for step, value in recorded(run, "sgd", seed, 12, "indicator/value").items() if step >= 6])
        for seed in range(2)
    ]
    assert summary["batch_size"]["12"]["trace_hc"]["value"] == pytest.approx(12 * np.mean(late))
    balances = []
    for seed in range(2):
        noise, descent, curvature = (
            curve[12] - curve[6]
            for curve in (recorded(run, "sgd", seed, 3, f"account/{t}") for t in ("noise", "descent", "curvature"))
        )
        balances.append(-noise / (descent + curvature))
    assert summary["batch_size"]["3"]["balance"]["value"] == pytest.approx(np.mean(balances))
    assert summary["correlation"].keys() == {"3", "12", "all"}


def test_a_correlation_is_over_a_seeds_iterates_and_its_interval_over_seeds() -> None:
    """The minimum, step 0, which all runs share, does not count."""
    sharpness = {0: {3: [9, 1, 2, 3], 12: [9, 4, 6, 5]}, 1: {3: [9, 3, 1, 2], 12: [9, 6, 5, 4]}}
    accuracy = {0: {3: [9, 6, 5, 4], 12: [9, 1, 2, 3]}, 1: {3: [9, 1, 2, 4], 12: [9, 3, 5, 6]}}
    rows = [
        {"phase": "sgd", "seed": seed, "batch_size": size, "step": step, "metric": metric, "value": float(value)}
        for metric, kept in (("sharpness/signed", sharpness), ("test_accuracy", accuracy))
        for seed, by_size in kept.items()
        for size, values in by_size.items()
        for step, value in enumerate(values)
    ]
    curves = Curves(rows, 2, by=("phase", "batch_size", "metric"))
    for sizes in ([3], [12], [3, 12]):
        found = _correlation(SMALL, curves, sizes)
        z = []
        for seed in range(2):
            both = [[x for size in sizes for x in kept[seed][size][1:]] for kept in (sharpness, accuracy)]
            z.append(fisher_z(rank_correlation(*both), 3 * len(sizes)))
        half = 12.706204736432095 * np.std(z, ddof=1) / 2**0.5
        assert list(found.values()) == pytest.approx(np.tanh([np.mean(z), np.mean(z) - half, np.mean(z) + half]))
    assert math.isnan(_correlation(SMALL, curves, [7])["value"])


@pytest.mark.slow
def test_the_page_is_self_contained(run: Run) -> None:
    write_report(run)
    figures = {"budget", "indicator", "alignment", "pairs"}
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")} == {
        name for name in files(run.path) if name.startswith("figures")
    }
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert all(address.startswith(("data:", "#")) for address in Fetched(page).addresses)
    for text in ("What the batch size changes", "left over", "drawn / predicted", "(gelu)", "rank correlation"):
        assert text in page
    console = Console(width=140)
    with console.capture() as capture:
        console.print(QUANTITIES.summary_table(run.summary()))
    assert "balance" in capture.get()


def test_a_run_that_diverges_is_reported_as_such(tmp_path: Path) -> None:
    config = replace(SMALL, seeds=1, lr=1e9, batch_sizes=(3,), gd_steps=5)
    found = QUANTITIES.run(config, tmp_path / "run", jobs=1, progress=False)
    assert found.summary()["account"]["3"]["actual"]["value"] is None
    write_report(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "rely"}, "unknown activation 'rely'; did you mean relu"),
        ({"batch_sizes": ()}, "batch_sizes are numbers of samples, at least one"),
        ({"batch_sizes": (5, 0)}, "batch_sizes are numbers of samples, at least one"),
        ({"batch_sizes": (5, 5)}, "batch_sizes must differ"),
        ({"rates": (1.0, 0.0)}, "rates are positive multiples of lr"),
        ({"landmarks": (1.5,)}, r"landmarks are shares of steps in \[0, 1\]"),
        ({"gd_decay_from": 1.0}, "gd_decay_from is a share"),
        ({"draws": 1}, "draws must be at least 2, not 1"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
    ],
)
def test_constants_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_descent_that_diverges_leaves_no_minimum(tmp_path: Path) -> None:
    config = replace(SMALL, seeds=1, gd_lr=1e9)
    with pytest.raises(RuntimeError, match=r"gradient descent diverged at step .* Lower gd_lr"):
        QUANTITIES.run(config, tmp_path / "run", jobs=1, progress=False)


def test_more_images_than_there_are_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the digits hold 1797"):
        QUANTITIES.run(replace(SMALL, clean=2000), tmp_path / "run", jobs=1, progress=False)
    assert not (tmp_path / "run").exists()


def test_images_come_from_a_directory_where_one_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold fashion_mnist"):
        quantities_problem(replace(SMALL, data_dir=str(tmp_path)), 0)


def test_the_risk_is_of_the_activation_asked_for() -> None:
    kinds = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "tanh": torch.nn.Tanh}
    for name, kind in kinds.items():
        made = quantities_problem(replace(SMALL, activation=name), 0)
        assert sum(isinstance(module, kind) for module in made.model.modules()) == 3
        assert isinstance(made.risk, ns.EmpiricalRisk)
