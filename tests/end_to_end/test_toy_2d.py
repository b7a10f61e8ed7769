"""The toy at a tiny size: what a run leaves behind, and whether its numbers are what they claim."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from noisescape.experiments.protocols.toy_2d import BLOCK
from noisescape.experiments.statistics import mean_over, wilson
from noisescape.experiments.toy_2d import TOY_2D, Toy2DConfig
from noisescape.report.page import _plotlyjs
from noisescape.runs.run import Run
from run_files import ARMS, TINY, assert_same_results, check_report, files

GEOMETRIES = {"published": 7, "isotropic": 4, "rotated": 4}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return TOY_2D.run(TINY, tmp_path_factory.mktemp("toy") / "run", jobs=1, progress=False)


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
        assert name in ARMS
        assert path.shape == (61, min(6, GEOMETRIES[geometry]), 2)
        assert (path[0] == 1).all()
    assert len(toy.tensors("trajectories")) == 21


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
        for name in ARMS
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
    assert list(summary["success"]) == ARMS
    assert summary["controls"].keys() == {"isotropic", "rotated"}
    assert summary["gradient_noise_trace"] == pytest.approx(0.01 / 0.005**2)
    for geometry, replicas in GEOMETRIES.items():
        found = summary if geometry == "published" else summary["controls"][geometry]
        for name in ARMS:
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
        most = found["gld-top-eigenvector"]["value"] * (1 + 1e-4)
        assert found["gld-leading"]["value"] <= most
        assert found["gld-leading-1"]["value"] <= most
    # the data's own axes are those of H; in the isotropic basin every shape meets the same curvature
    published = toy.summary()["trace_h_sigma"]
    assert published["gld-leading"]["value"] < 0.97 * published["gld-leading-1"]["value"], "of rank 2, not of 1"


@pytest.mark.slow
def test_a_toy_report_is_self_contained(toy: Run) -> None:
    page = check_report(toy, {"trajectories", "success", "indicator"})
    departs = "Where this run departs from the published code and the paper"
    for text in (
        "1st eigenvector",
        "leading, k = 1",
        "basin turned by 90°",
        toy.summary()["preset"],
        "Tr(HΣ)",
        departs,
    ):
        assert text in page


def test_a_page_one_can_play_is_small() -> None:
    """Of the 4.8 MB of plotly.js a page holds the quarter that it needs."""
    held = len(_plotlyjs())
    assert 1e6 < held < 1.3e6
    assert "MIT license" in _plotlyjs()[:300]


def test_a_toy_table_names_every_dynamics_and_geometry(toy: Run) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(TOY_2D.summary_table(toy.summary()))
    text = capture.get()
    assert all(text.count(name) >= 3 for name in ARMS)
    assert all(geometry in text for geometry in GEOMETRIES)


@pytest.mark.slow
def test_toy_results_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    runs = [TOY_2D.run(TINY, tmp_path / str(jobs), jobs=jobs, progress=False) for jobs in (1, 2)]
    assert_same_results(*runs, checkpoints=("trajectories",))


@pytest.mark.slow
def test_another_seed_is_another_run(toy: Run, tmp_path: Path) -> None:
    other = TOY_2D.run(replace(TINY, seed=4), tmp_path / "run", jobs=1, progress=False)
    pairs = zip(toy.metrics().to_pylist(), other.metrics().to_pylist(), strict=True)
    assert all(a["w1"] != b["w1"] for a, b in pairs)


@pytest.mark.slow
def test_the_preset_changes_only_the_noises_that_look_at_gradients(toy: Run, tmp_path: Path) -> None:
    other = TOY_2D.run(replace(TINY, preset="as-published"), tmp_path / "run", jobs=1, progress=False)
    assert (toy.summary()["preset"], other.summary()["preset"]) == ("quick", "as-published")
    for row, twin in zip(toy.metrics().to_pylist(), other.metrics().to_pylist(), strict=True):
        if row["dynamics"] in ("gld-diagonal", "gld-leading", "gld-leading-1"):
            assert row["w1"] != twin["w1"]
        else:  # up to the rounding of a trace that is scaled to the same in both
            assert row["w1"] == pytest.approx(twin["w1"], abs=1e-3)


def test_replicas_beyond_one_block_are_all_there(tmp_path: Path) -> None:
    config = Toy2DConfig(replicas=BLOCK + 1, control_replicas=0, points=5, steps=2)
    rows = TOY_2D.run(config, tmp_path / "run", jobs=1, progress=False).metrics().to_pylist()
    leading = [row for row in rows if row["dynamics"] == "gld-leading"]
    assert sorted(row["replica"] for row in leading) == [*range(BLOCK + 1)]
    assert len({(row["w1"], row["w2"]) for row in leading}) == BLOCK + 1, "blocks have noise of their own"


@pytest.mark.slow
def test_one_replica_one_step_and_no_controls_are_enough(tmp_path: Path) -> None:
    config = Toy2DConfig(replicas=1, control_replicas=0, points=2, steps=1)
    run = TOY_2D.run(config, tmp_path / "run", jobs=1, progress=False)
    assert run.summary()["controls"] == {}
    assert set(run.metrics()["geometry"].to_pylist()) == {"published"}
    check_report(run, {"trajectories", "success", "indicator"})


@pytest.fixture(scope="module")
def full_length(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, float]]]:
    """Success at the published constants, fewer replicas."""
    config = Toy2DConfig(replicas=100, control_replicas=40)
    summary = TOY_2D.run(config, tmp_path_factory.mktemp("toy") / "run", jobs=1, progress=False).summary()
    controls = {geometry: found["success"] for geometry, found in summary["controls"].items()}
    return {"published": summary["success"], **controls}


@pytest.mark.slow
def test_gradient_descent_never_escapes(full_length: dict[str, dict[str, dict[str, float]]]) -> None:
    assert [found["gd"]["rate"] for found in full_length.values()] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("aligned", ["gld-leading", "gld-hessian", "gld-top-eigenvector", "gld-leading-1"])
@pytest.mark.parametrize("other", ["gld-constant", "gld-diagonal"])
def test_aligned_noise_escapes_more_than_isotropic(
    aligned: str, other: str, full_length: dict[str, dict[str, dict[str, float]]]
) -> None:
    assert full_length["published"][aligned]["low"] > full_length["published"][other]["high"]


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["isotropic", "rotated"])
def test_the_controls_take_the_advantage_of_leading_noise_away(
    geometry: str, full_length: dict[str, dict[str, dict[str, float]]]
) -> None:
    assert full_length[geometry]["gld-leading"]["high"] < full_length["published"]["gld-leading"]["low"]
