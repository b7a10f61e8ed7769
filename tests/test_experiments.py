"""The experiments at a tiny size: what a run leaves behind, and whether its numbers are what they claim."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from threadpoolctl import threadpool_info, threadpool_limits
from torch.testing import assert_close

from cases import F64, generator
from noisescape.dynamics import CONTROLS, DYNAMICS
from noisescape.errors import CorruptFileError
from noisescape.experiments import escape, one_hidden_layer
from noisescape.experiments import toy_2d as toy_experiment
from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.digits import DigitsConfig, digits_problem, run_digits
from noisescape.experiments.statistics import derived_seed, mean_over, wilson
from noisescape.experiments.toy_2d import BLOCK, RunningSums, Toy2DConfig, run_toy_2d, toy_dynamics
from noisescape.linops import largest_eigh
from noisescape.report import write_report
from noisescape.report.tables import TABLES
from noisescape.runs.run import Run
from noisescape.runs.tasks import Outcome, Task, finish, perform
from noisescape.theory.landscapes import SHARP_MINIMUM, toy_2d, toy_points

SIX = ["gd", "gld-constant", "gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector"]
TINY = Toy2DConfig(replicas=7, control_replicas=4, points=20, steps=60, seed=3)
GEOMETRIES = {"published": 7, "isotropic": 4, "rotated": 4}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_toy_2d(TINY, tmp_path_factory.mktemp("toy") / "run", jobs=1, progress=False)


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def assert_same_results(one: Run, other: Run, checkpoints: tuple[str, ...]) -> None:
    """To the last bit, NaN included."""
    for name in ("metrics.parquet", "summary.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    for name in checkpoints:
        assert_close(one.tensors(name), other.tensors(name), rtol=0, atol=0, equal_nan=True)


class Fetched(HTMLParser):
    """Addresses that a browser would fetch on opening a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href") and tag != "a"]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def check_report(run: Run, figures: set[str]) -> str:
    assert write_report(run) == run.path / "report.html"
    return check_page(run, figures)


def check_page(run: Run, figures: set[str]) -> str:
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")} == {
        name for name in files(run.path) if name.startswith("figures")
    }
    page = (run.path / "report.html").read_text(encoding="utf-8")
    addresses = Fetched(page).addresses
    assert len(addresses) >= len(figures)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    told = headings(page)
    assert (told[0], told[-1]) == ("What holds and what does not", "How the claims are judged")
    return page


# ---------------------------------------------------------------------- toy-2d


def test_a_toy_run_leaves_everything_behind(toy: Run) -> None:
    assert toy.complete
    assert files(toy.path) >= {
        "run.json",
        "metrics.parquet",
        "summary.json",
        "timing.json",
        "checkpoints/trajectories.safetensors",
    }
    assert not (toy.path / "tasks").exists()
    assert toy.timing().keys() == {"seconds", "task_seconds"}
    assert toy.info["experiment"] == "toy-2d"
    assert toy.info["seed"] == 3
    assert toy.info["config"] == asdict(TINY)
    for key, path in toy.tensors("trajectories").items():
        geometry, name = key.split("/")
        assert name in SIX
        assert path.shape == (61, min(6, GEOMETRIES[geometry]), 2)
        assert (path[0] == 1).all()
    assert len(toy.tensors("trajectories")) == 18


def test_toy_metrics_are_tidy(toy: Run) -> None:
    rows = toy.metrics().to_pylist()
    assert set(rows[0]) == {
        "geometry",
        "dynamics",
        "replica",
        "escaped",
        "first_escaped_step",
        "diverged",
        "trace_h_sigma",
        "w1",
        "w2",
    }
    expected = {
        (geometry, name, replica)
        for geometry, replicas in GEOMETRIES.items()
        for name in SIX
        for replica in range(replicas)
    }
    assert {(row["geometry"], row["dynamics"], row["replica"]) for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert row["escaped"] == (row["w1"] < -0.5 and row["w2"] < -0.5)
        assert not row["diverged"]
        assert row["first_escaped_step"] is None or 0 < row["first_escaped_step"] <= 60
        assert row["first_escaped_step"] is not None or not row["escaped"]


def test_toy_summary_is_that_of_its_metrics(toy: Run) -> None:
    summary, rows = toy.summary(), toy.metrics().to_pylist()
    assert list(summary["success"]) == SIX
    assert summary["controls"].keys() == {"isotropic", "rotated"}
    assert summary["gradient_noise_trace"] == pytest.approx(0.01 / 0.005**2)
    for geometry, replicas in GEOMETRIES.items():
        found = summary if geometry == "published" else summary["controls"][geometry]
        for name in SIX:
            mine = [row for row in rows if (row["geometry"], row["dynamics"]) == (geometry, name)]
            assert found["success"][name] == asdict(wilson(sum(row["escaped"] for row in mine), replicas))
            mean = mean_over([row["trace_h_sigma"] for row in mine])
            assert found["trace_h_sigma"][name]["value"] == pytest.approx(mean.value)


def test_toy_indicators_are_those_of_the_basins(toy: Run) -> None:
    """H = 2·diag(p, q) at the start and TrΣ = 400, so all but the data's own shapes are known by hand."""
    for geometry, (p, q) in {"published": (10, 100), "isotropic": (55, 55), "rotated": (100, 10)}.items():
        summary = toy.summary()
        found = (summary if geometry == "published" else summary["controls"][geometry])["trace_h_sigma"]
        by_hand = {
            "gd": 0,
            "gld-constant": 400 * (p + q),
            "gld-hessian": 400 * 2 * (p**2 + q**2) / (p + q),
            "gld-top-eigenvector": 400 * 2 * max(p, q),
            # the basin's axes lie at 45° to the coordinates, so any diagonal noise meets (p + q)/2
            "gld-diagonal": 400 * (p + q),
        }
        for name, expected in by_hand.items():
            assert found[name]["value"] == pytest.approx(expected, rel=1e-4)
        assert found["gld-leading"]["value"] <= found["gld-top-eigenvector"]["value"] * (1 + 1e-4)


def test_a_toy_report_is_self_contained(toy: Run) -> None:
    page = check_report(toy, {"trajectories", "success", "indicator"})
    for text in ("1st eigenvector", "basin turned by 90°", toy.summary()["preset"], "Tr(HΣ)"):
        assert text in page


def test_a_toy_table_names_every_dynamics_and_geometry(toy: Run) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(TABLES["toy-2d"](toy.summary()))
    text = capture.get()
    assert all(text.count(name) >= 3 for name in SIX)
    assert all(geometry in text for geometry in GEOMETRIES)


def test_toy_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    runs = [run_toy_2d(TINY, tmp_path / str(jobs), jobs=jobs, progress=False) for jobs in (1, 2)]
    assert_same_results(*runs, checkpoints=("trajectories",))


def test_another_seed_is_another_run(toy: Run, tmp_path: Path) -> None:
    other = run_toy_2d(replace(TINY, seed=4), tmp_path / "run", jobs=1, progress=False)
    pairs = zip(toy.metrics().to_pylist(), other.metrics().to_pylist(), strict=True)
    assert all(a["w1"] != b["w1"] for a, b in pairs)


def test_the_preset_changes_only_the_noises_that_look_at_gradients(toy: Run, tmp_path: Path) -> None:
    other = run_toy_2d(replace(TINY, preset="as-published"), tmp_path / "run", jobs=1, progress=False)
    assert (toy.summary()["preset"], other.summary()["preset"]) == ("corrected", "as-published")
    for row, twin in zip(toy.metrics().to_pylist(), other.metrics().to_pylist(), strict=True):
        if row["dynamics"] in ("gld-diagonal", "gld-leading"):
            assert row["w1"] != twin["w1"]
        else:  # up to the rounding of a trace that is scaled to the same in both
            assert row["w1"] == pytest.approx(twin["w1"], abs=1e-3)


def test_replicas_beyond_one_block_are_all_there(tmp_path: Path) -> None:
    config = Toy2DConfig(replicas=BLOCK + 1, control_replicas=0, points=5, steps=2)
    rows = run_toy_2d(config, tmp_path / "run", jobs=1, progress=False).metrics().to_pylist()
    leading = [row for row in rows if row["dynamics"] == "gld-leading"]
    assert sorted(row["replica"] for row in leading) == [*range(BLOCK + 1)]
    assert len({(row["w1"], row["w2"]) for row in leading}) == BLOCK + 1, "blocks have noise of their own"


def test_one_replica_one_step_and_no_controls_are_enough(tmp_path: Path) -> None:
    config = Toy2DConfig(replicas=1, control_replicas=0, points=2, steps=1)
    run = run_toy_2d(config, tmp_path / "run", jobs=1, progress=False)
    assert run.summary()["controls"] == {}
    assert set(run.metrics()["geometry"].to_pylist()) == {"published"}
    check_report(run, {"trajectories", "success", "indicator"})


@pytest.fixture(scope="module")
def full_length(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, float]]]:
    """Success at the published constants, fewer replicas."""
    config = Toy2DConfig(replicas=100, control_replicas=40)
    summary = run_toy_2d(config, tmp_path_factory.mktemp("toy") / "run", jobs=1, progress=False).summary()
    controls = {geometry: found["success"] for geometry, found in summary["controls"].items()}
    return {"published": summary["success"], **controls}


def test_gradient_descent_never_escapes(full_length: dict[str, dict[str, dict[str, float]]]) -> None:
    assert [found["gd"]["rate"] for found in full_length.values()] == [0, 0, 0]


@pytest.mark.parametrize("aligned", ["gld-leading", "gld-hessian", "gld-top-eigenvector"])
@pytest.mark.parametrize("other", ["gld-constant", "gld-diagonal"])
def test_aligned_noise_escapes_more_than_isotropic(
    aligned: str, other: str, full_length: dict[str, dict[str, dict[str, float]]]
) -> None:
    assert full_length["published"][aligned]["low"] > full_length["published"][other]["high"]


@pytest.mark.parametrize("geometry", ["isotropic", "rotated"])
def test_the_controls_take_the_advantage_of_leading_noise_away(
    geometry: str, full_length: dict[str, dict[str, dict[str, float]]]
) -> None:
    assert full_length[geometry]["gld-leading"]["high"] < full_length["published"]["gld-leading"]["low"]


def test_the_published_fault_is_a_covariance_of_running_sums() -> None:
    """One data set, at the start: gradients, their running sums and the covariance written out."""
    points = toy_points(1, 30, generator(4), F64)[0]
    start = torch.tensor(SHARP_MINIMUM, dtype=F64)
    along = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=F64) / math.sqrt(2)
    curvature = 2 * along.T @ torch.diag(torch.tensor([10.0, 100.0], dtype=F64)) @ along
    gradients = [-curvature @ point for point in points]
    sums = [sum(gradients[: n + 1]) for n in range(len(gradients))]
    mean = sum(sums) / len(sums)
    faulty = sum(torch.outer(row - mean, row - mean) for row in sums) / len(sums)
    right = torch.cov(torch.stack(gradients).T, correction=0)

    published, corrected = toy_2d(points, kind=RunningSums), toy_2d(points)
    assert_close(published.noise_covariance(start, 1).dense(), faulty, rtol=1e-9, atol=1e-12)
    assert_close(corrected.noise_covariance(start, 1).dense(), right, rtol=1e-9, atol=1e-12)
    assert_close(published.gradient(start), corrected.gradient(start))
    assert_close(published.losses(start), corrected.losses(start))
    for name, shape in toy_dynamics(400.0).items():
        state = shape.init(published, start)
        noisy = [shape.noisy_gradient(published, start, state, generator(seed))[0] for seed in range(400)]
        error = torch.stack(noisy).std(0) / 20
        gap = (torch.stack(noisy).mean(0) - corrected.gradient(start)).abs()
        assert (gap <= 4.5 * error + 1e-9).all(), "it drifts along ∇L, whatever scatters how"
        if name == "gd":
            continue
        slope = shape.noise(published, start, None, generator(0))[1]
        if slope is not None:
            assert_close(slope, corrected.gradient(start), rtol=1e-9, atol=1e-9)
        wanted = {
            "gld-diagonal": torch.diag(faulty.diagonal()) * 400 / faulty.trace(),
            "gld-leading": 400 * torch.outer(*[torch.linalg.eigh(faulty).eigenvectors[:, -1]] * 2),
        }.get(name)
        found = shape.covariance(published, start).dense()
        if wanted is None:  # it does not look at the data
            wanted = shape.covariance(corrected, start).dense()
        assert_close(found, wanted, rtol=1e-7, atol=1e-9)
        assert float(found.trace()) == pytest.approx(400)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "published"}, "unknown preset 'published'; known: corrected, as-published"),
        ({"replicas": 0}, "replicas must be at least 1, not 0"),
        ({"control_replicas": -1}, "control_replicas must be at least 0"),
        ({"points": 1}, "points must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"update_trace": -1.0}, "update_trace not negative"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_toy_constants_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy2DConfig(**changes)


# ---------------------------------------------------------------------- digits

SMALL = DigitsConfig(
    seeds=1,
    clean=60,
    corrupted=10,
    gd_steps=150,
    steps=6,
    k=3,
    batch_size=5,
    rho=1e12,  # so that one dynamics diverges
    sharpness_draws=4,
    dynamics=("gd", "sgd", "gld-top-eigenvector", "gld-constant"),
    seed=2,
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_digits(SMALL, tmp_path_factory.mktemp("digits") / "run", jobs=1, progress=False)


@pytest.fixture
def copied(digits: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    shutil.copytree(digits.path, tmp_path / "copy")
    return Run(tmp_path / "copy")


def series(run: Run, **wanted: object) -> dict[int, float]:
    rows = [row for row in run.metrics().to_pylist() if all(row[key] == wanted[key] for key in wanted)]
    return {row["step"]: row["value"] for row in rows}


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
        assert set(series(digits, phase="descent", metric=name)) == {8, 15, 38, 75}
    assert set(series(digits, phase="minimum", metric="trace_h_sigma")) == {150}
    for name in ("gd", "sgd", "gld-top-eigenvector"):
        assert set(series(digits, phase="escape", dynamics=name, metric="loss")) == {*range(7)}
        assert set(series(digits, phase="escape", dynamics=name, metric="trace_target")) == {0, 3}
        injected = series(digits, phase="escape", dynamics=name, metric="injected")
        assert set(injected) == (set() if name == "gd" else {0, 3}), "at the same steps, so that both compare"


def test_what_was_injected_and_what_for_is_summed_up(digits: Run) -> None:
    summary = digits.summary()
    for name in ("sgd", "gld-top-eigenvector"):
        for metric, key in (("injected", "injected_trace"), ("trace_target", "target_trace")):
            values = series(digits, phase="escape", dynamics=name, metric=metric).values()
            assert summary[key][name]["value"] == pytest.approx(sum(values) / len(values))
    assert summary["injected_trace"]["gd"]["value"] == 0
    risk = digits_problem(SMALL, 0).risk
    trace = float(risk.noise_covariance(digits.tensors("minima")["seed-0"], SMALL.batch_size).trace())
    for name in SMALL.dynamics:
        start = series(digits, phase="escape", dynamics=name, metric="trace_target")[0]
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
    descent = series(digits, phase="descent", metric="loss")
    assert descent[150] == pytest.approx(float(risk.loss(minimum)), rel=1e-5)
    assert descent[150] < descent[0]
    accuracy = series(digits, phase="descent", metric="test_accuracy")
    assert accuracy[150] == pytest.approx(float(test.accuracy(minimum)))
    for name in SMALL.dynamics:
        start = series(digits, phase="escape", dynamics=name, metric="loss")[0]
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
            series(digits, phase="escape", dynamics=name, metric="sharpness/signed")[step] for step in (0, 6)
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
        console.print(TABLES["digits"](digits.summary()))
    assert all(name in capture.get() for name in SMALL.dynamics)


def test_figures_that_are_not_finite_do_not_stop_the_report(copied: Run) -> None:
    """JSON has no infinity: a decay exponent where λ_{k+1} ≤ 0, say, comes back as None."""
    summary = copied.summary()
    for name in ("decay_exponent", "noise_scale", "anisotropy", "projection_coefficient"):
        summary["minimum"][0][name] = dict.fromkeys(("value", "stderr", "low", "high"))
    copied.write_summary(summary)
    check_report(copied, {"learning_curves", "sharpness", "indicator", "spectra"})
    console = Console(width=120)
    with console.capture():
        console.print(TABLES["digits"](summary))


def test_changes_are_taken_within_a_seed_even_if_another_seed_diverged() -> None:
    """Seed 0 stopped early; seed 1 went from 10 to 12."""
    config = replace(SMALL, seeds=2, dynamics=("sgd",))
    seen = [(0, 0, 1.0), (0, 3, math.nan), (1, 0, 10.0), (1, 6, 12.0)]
    rows = [
        {"phase": "escape", "dynamics": "sgd", "metric": metric, "seed": seed, "step": step, "value": value}
        for seed, step, value in seen
        for metric in ("loss", "test_accuracy", "sharpness/signed", "sharpness/absolute", "injected")
    ]
    summary = escape._summary(config, rows, [], {})
    assert summary["sharpness_change"]["sgd"]["value"] == 2.0
    assert summary["final"]["sgd"]["loss"]["value"] == 12.0
    assert summary["injected_trace"]["sgd"]["value"] == 11.0, "of the seed that stayed"


def test_a_diverging_descent_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    config = replace(SMALL, gd_steps=20, gd_lr=1e6)
    message = r"gradient descent diverged at step \d+ of repetition 0.* Lower gd_lr \(now 1e\+06\)"
    with pytest.raises(RuntimeError, match=message):
        run_digits(config, tmp_path / "run", jobs=1, progress=False)
    assert files(tmp_path / "run") == {"run.json"}


def test_a_failure_midway_leaves_no_summary_and_can_be_resumed(
    digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Outcome:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(escape, "_survey", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            run_digits(SMALL, tmp_path / "run", jobs=1, progress=False)
    run = Run.open(tmp_path / "run")
    assert not run.complete
    finished = ["descent-0", *(f"escape-{name}-0" for name in SMALL.dynamics)]
    assert files(run.path) == {"run.json", *(f"tasks/{key}.done.safetensors" for key in finished)}
    with pytest.raises(FileNotFoundError, match="did not finish"):
        write_report(run)

    with monkeypatch.context() as patch:
        patch.setattr(escape, "_descend", broken)
        patch.setattr(escape, "_escape", broken)
        resumed = run_digits(SMALL, run.path, jobs=1, resume=True, progress=False)
    assert resumed.complete
    assert_same_results(resumed, digits, checkpoints=("data", "minima", "final", "spectra"))
    assert files(resumed.path) == files(digits.path) - {
        name for name in files(digits.path) if name.startswith(("figures", "report"))
    }


def test_a_complete_run_is_not_run_again(digits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escape, "perform", pytest.fail)
    before = {name: (digits.path / name).stat().st_mtime_ns for name in files(digits.path)}
    assert run_digits(SMALL, digits.path, resume=True, progress=False) == digits
    assert before == {name: (digits.path / name).stat().st_mtime_ns for name in files(digits.path)}


def test_a_run_is_not_continued_with_other_constants(copied: Run) -> None:
    with pytest.raises(ValueError, match=r"cannot be continued with other constants: lr = 0\.07 there, 0\.05 now"):
        run_digits(replace(SMALL, lr=0.05), copied.path, resume=True, progress=False)
    with pytest.raises(ValueError, match="is a run of 'digits', not of 'toy-2d'"):
        run_toy_2d(TINY, copied.path, resume=True, progress=False)
    assert files(copied.path) >= {"run.json", "metrics.parquet", "summary.json"}


@pytest.mark.parametrize("which", ["toy", "digits"])
def test_an_occupied_directory_is_refused_and_untouched(which: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    experiments = {"toy": (run_toy_2d, TINY), "digits": (run_digits, SMALL)}
    function, config = experiments[which]
    with pytest.raises(FileExistsError, match="not empty"):
        function(config, tmp_path, jobs=1, progress=False)
    assert files(tmp_path) == {"mine.txt"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"gd_steps": 0}, "gd_steps must be at least 1"),
        ({"steps": -1}, "steps must be at least 1, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
        ({"gd_lr": math.nan}, "gd_lr must be positive, not nan"),
        ({"sharpness_delta": -1.0}, "sharpness_delta must be positive"),
        ({"dynamics": ("sgd", "gld-leding")}, "unknown dynamics 'gld-leding'; did you mean gld-leading"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"sharpness_draws": 1}, "sharpness_draws must be at least 2, not 1"),
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"refresh": 0}, "refresh must be at least 1, not 0"),
        ({"curvature_refresh": 0}, "curvature_refresh must be at least 1, not 0"),
        ({"rtol": 0.0}, "rtol must be positive, not 0"),
        ({"landmarks": (0.5, 1.5)}, r"landmarks are shares of gd_steps in \(0, 1\], not \(0.5, 1.5\)"),
    ],
)
def test_digits_constants_are_checked_before_any_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_the_controls_beside_the_comparison_have_to_be_asked_for() -> None:
    assert DigitsConfig().dynamics == tuple(name for name in DYNAMICS if name not in CONTROLS)
    assert set(CONTROLS) == {"gld-shuffled", "gd-gradient-penalty"}


def test_constant_noise_has_the_trace_at_the_minimum_unless_told_otherwise() -> None:
    risk = digits_problem(SMALL, 0).risk
    theta = risk.parameters()
    matched = replace(SMALL, rho=None).make("gld-constant", 7.0).covariance(risk, theta)
    assert float(matched.trace()) == pytest.approx(7.0, rel=1e-5)
    told = replace(SMALL, rho=0.1).make("gld-constant", 7.0).covariance(risk, theta)
    assert float(told.trace()) == pytest.approx(0.01 * risk.dimension, rel=1e-5)


# ---------------------------------------------------------------------- tasks side by side


def outcome_of(value: float, *, checkpoint: Path) -> Outcome:
    assert checkpoint.parent.name == "tasks"
    assert checkpoint.name.endswith(".partial.safetensors")
    return Outcome(
        [{"value": value, "threads": torch.get_num_threads()}], {"b": torch.tensor([value])}, {"a": None}
    )


def refuse(*_: object, checkpoint: Path) -> Outcome:
    raise AssertionError("done again")


@pytest.fixture
def unfinished(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", experiment="powers", config={}, seed=0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_come_in_the_order_of_the_tasks(jobs: int, unfinished: Run) -> None:
    before = torch.get_num_threads()
    tasks = [Task(f"of-{value}", outcome_of, (value,)) for value in (5.0, math.nan, -1e-300)]
    found = perform(unfinished, tasks, jobs=jobs, title="powers", progress=False)
    assert [outcome.rows[0]["value"] for outcome in found] == pytest.approx([5.0, math.nan, -1e-300], nan_ok=True)
    assert [float(outcome.tensors["b"]) for outcome in found] == pytest.approx([5.0, math.nan, 0.0], nan_ok=True)
    assert [outcome.notes for outcome in found] == [{"a": None}] * 3
    assert torch.get_num_threads() == before


def test_every_task_runs_on_one_thread(unfinished: Run) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tasks = [Task(str(value), outcome_of, (value,)) for value in (1.0, 2.0)]
        found = perform(unfinished, tasks, jobs=1, title="threads", progress=False)
        assert [outcome.rows[0]["threads"] for outcome in found] == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def threads_of(*_: object, checkpoint: Path) -> Outcome:
    """Of this process: PyTorch's, and those of the BLAS that NumPy and SciPy call."""
    blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return Outcome([{"torch": torch.get_num_threads(), "blas": max(blas, default=1)}])


@pytest.mark.parametrize("accelerator", [False, True], ids=["without", "with"])
def test_on_the_cpu_a_task_has_one_thread_whether_or_not_there_is_an_accelerator(
    accelerator: bool, unfinished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2):
            [on_cpu] = perform(
                unfinished, [Task("a", threads_of, ())], jobs=1, title="", progress=False, device="cpu"
            )
            [elsewhere] = perform(
                unfinished, [Task("b", threads_of, ())], jobs=1, title="", progress=False, device="cuda:0"
            )
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert on_cpu.rows == [{"torch": 1, "blas": 1}]
    assert elsewhere.rows[0]["torch"] == 2, "nothing is taken from what feeds an accelerator"


@pytest.mark.parametrize(
    ("module", "start"),
    [
        (toy_experiment, lambda out: run_toy_2d(replace(TINY, device="cpu:0"), out, progress=False)),
        (
            one_hidden_layer,
            lambda out: one_hidden_layer.run_one_hidden_layer(
                one_hidden_layer.OneHiddenLayerConfig(device="cpu:0"), out, progress=False
            ),
        ),
        (escape, lambda out: run_digits(DigitsConfig(device="cpu:0"), out, progress=False)),
    ],
    ids=["toy-2d", "one-hidden-layer", "digits"],
)
def test_experiments_say_which_device_their_tasks_run_on(
    module: ModuleType, start: Callable[[Path], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(*_: object, device: str, **__: object) -> list[Outcome]:
        raise LookupError(device)

    monkeypatch.setattr(module, "perform", note)
    with pytest.raises(LookupError, match="cpu:0"):
        start(tmp_path / "run")


def eigenvectors(*_: object, checkpoint: Path) -> Outcome:
    """By SciPy, large enough for its BLAS to share the work out."""
    rows = torch.randn(700, 800, generator=torch.Generator().manual_seed(0))
    values, vectors = largest_eigh(rows @ rows.mT, 20)
    return Outcome(tensors={"values": values, "vectors": vectors.contiguous()})


def test_eigenvectors_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        run = Run.create(tmp_path / str(jobs), experiment="eigenvectors", config={}, seed=0)
        tasks = [Task(key, eigenvectors, ()) for key in "ab"]
        found += perform(run, tasks, jobs=jobs, title="", progress=False)
    for other in found[1:]:
        assert torch.equal(found[0].tensors["values"], other.tensors["values"])
        assert torch.equal(found[0].tensors["vectors"], other.tensors["vectors"])


def test_a_finished_task_is_not_done_again_and_a_damaged_one_is_named(unfinished: Run) -> None:
    first = perform(unfinished, [Task("a", outcome_of, (1.0,))], jobs=1, title="", progress=False)
    tasks = [Task("a", refuse, ()), Task("b", outcome_of, (2.0,))]
    again = perform(unfinished, tasks, jobs=1, title="", progress=False)
    assert again[0].rows == first[0].rows
    assert again[1].rows[0]["value"] == 2.0
    kept = unfinished.path / "tasks" / "a.done.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(
        CorruptFileError, match=r"tasks/a\.done\.safetensors .*Remove it, and --resume does that part"
    ):
        perform(unfinished, tasks, jobs=1, title="", progress=False)


def test_the_end_of_a_run_counts_every_tasks_time(unfinished: Run) -> None:
    tasks = [Task(str(value), outcome_of, (value,)) for value in (1.0, 2.0)]
    rows = [row for found in perform(unfinished, tasks, jobs=1, title="", progress=False) for row in found.rows]
    assert not unfinished.complete
    finish(unfinished, rows, {"found": math.inf}, started=0.0)
    assert unfinished.complete
    assert unfinished.summary() == {"found": None}
    assert unfinished.metrics()["value"].to_pylist() == [1.0, 2.0]
    assert 0 < unfinished.timing()["task_seconds"] < unfinished.timing()["seconds"]
    assert files(unfinished.path) == {"run.json", "metrics.parquet", "summary.json", "timing.json"}
