"""The experiments on images, at a tiny size: what their runs leave behind and say."""

from __future__ import annotations

import functools
import html
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from noisescape.experiments.cifar10 import CIFAR10
from noisescape.experiments.claims import Evidence, ledger
from noisescape.experiments.fashion_mnist import fashion_mnist_problem
from noisescape.experiments.images import open_images
from noisescape.experiments.models import vgg11
from noisescape.experiments.protocols import escape
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.statistics import derived_seed
from noisescape.report import write_combined_report, write_report
from noisescape.runs.places import open_runs
from noisescape.runs.run import Run
from paper_runs import FIGURES, SET_OF, on_images, tiny
from run_files import check_page, check_report, files, headings, recorded
from slowness import quick


@pytest.fixture(scope="module")
def run_of(data: Path, tmp_path_factory: pytest.TempPathFactory, small_hidden: Run) -> Callable[[str], Run]:
    """An experiment of the paper but for its toy, at a tiny size, with its report."""
    root = tmp_path_factory.mktemp("suite")

    @functools.cache
    def made(name: str) -> Run:
        if name == "one-hidden-layer":
            run = small_hidden
        else:
            changes = {"seeds": 1} if name == "cifar10" else {}
            run = EXPERIMENTS[name].run(tiny(name, data, **changes), root / name, jobs=1, progress=False)
        write_report(run)
        return run

    return made


@on_images
def test_a_run_on_images_leaves_everything_behind(
    experiment: str, run_of: Callable[[str], Run], data: Path
) -> None:
    run = run_of(experiment)
    assert run.complete
    assert not (run.path / "tasks").exists()
    checkpoints = {"data", "final"} | ({"minima", "spectra"} if experiment == "fashion-mnist" else set())
    assert files(run.path) == {
        "run.json",
        "metrics.parquet",
        "summary.json",
        "timing.json",
        "report.html",
        *(f"checkpoints/{name}.safetensors" for name in checkpoints),
        *(f"figures/{name}.{kind}" for name in FIGURES[experiment] for kind in ("png", "svg")),
    }
    config = run.info["config"]
    assert config["data_dir"] == str(data)
    assert run.info["experiment"] == run.summary()["experiment"] == experiment
    finals = run.tensors("final")
    assert finals.keys() == {f"{name}/seed-{r}" for name in config["dynamics"] for r in range(config["seeds"])}
    assert all(bool(theta.isfinite().all()) for theta in finals.values())
    rows = run.metrics().to_pylist()
    keys = [tuple(row[key] for key in ("phase", "seed", "dynamics", "replica", "step", "metric")) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(math.isfinite(row["value"]) for row in rows)


@on_images
def test_a_run_on_images_says_what_it_was_trained_on(
    experiment: str, run_of: Callable[[str], Run], data: Path
) -> None:
    run = run_of(experiment)
    config, facts, kept = run.info["config"], run.summary()["data"], run.tensors("data")
    name = SET_OF[experiment]
    source = open_images(name, "train", data)
    assert facts["train"] == source.facts()
    assert facts["train"]["complete"] is False
    if experiment == "cifar10":
        assert facts["test"] == open_images(name, "test", data).facts()
        assert facts["test_selection"] == "drawn by the seed"
    else:
        assert facts["test"] == facts["train"]
        assert facts["test_selection"].startswith("a block of the training rows, from ")
    parts = ("rows", "labels", "corrupted", "test_rows")
    assert kept.keys() == {f"seed-{r}/{part}" for r in range(config["seeds"]) for part in parts}
    clean, random = (20, 5) if experiment == "fashion-mnist" else (24, 0)
    for repetition in range(config["seeds"]):
        rows, labels, corrupted, test_rows = (kept[f"seed-{repetition}/{part}"] for part in parts)
        assert len(set(rows.tolist())) == clean + random
        assert corrupted.tolist() == [False] * clean + [True] * random
        assert labels[:clean].tolist() == source.labels[rows[:clean]].tolist()
        assert len(test_rows) == 12
        if experiment != "cifar10":
            assert not set(rows.tolist()) & set(test_rows.tolist())
        # and that is what the risk holds
        problem = EXPERIMENTS[experiment].problem(tiny(experiment, data, seeds=config["seeds"]), repetition)
        assert problem.risk.sample_count == clean + random
        assert torch.equal(problem.split.rows, rows)
        assert torch.equal(problem.split.labels, labels)
    if config["seeds"] > 1:
        assert not torch.equal(kept["seed-0/rows"], kept["seed-1/rows"])


@on_images
def test_injected_noise_is_recorded_beside_its_target(experiment: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(experiment)
    config, evidence = run.info["config"], Evidence.of(run_of(experiment))
    phase = "escape" if experiment == "fashion-mnist" else "training"
    for name in config["dynamics"]:
        for seed in range(config["seeds"]):
            targets = recorded(run, phase=phase, dynamics=name, seed=seed, metric="trace_target")
            noises = recorded(run, phase=phase, dynamics=name, seed=seed, metric="injected")
            assert [*targets] == [step for step in (0, 3, 6) if step < config["steps"]]
            assert [*noises] == ([] if name in ("gd", "gd-gradient-penalty") else [*targets])
        ratios = evidence.trace_ratio(phase, name)
        if noises:
            assert all(0 < ratio.value < 20 for ratio in ratios), "measured, so that a mismatch would be seen"
            assert run.summary()["injected_trace"][name]["value"] > 0
            assert run.summary()["target_trace"][name]["value"] > 0


@on_images
def test_every_dynamics_starts_from_the_same_point(experiment: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(experiment)
    phase = "escape" if experiment == "fashion-mnist" else "training"
    for seed in range(run.info["config"]["seeds"]):
        for metric in ("loss", "test_accuracy", "trace_target"):
            values = {
                recorded(run, phase=phase, dynamics=name, seed=seed, metric=metric)[0]
                for name in run.info["config"]["dynamics"]
            }
            assert len(values) == 1
    finals = [theta for key, theta in run.tensors("final").items() if key.endswith("seed-0")]
    assert len({tuple(theta[:50].tolist()) for theta in finals}) == len(finals), "and goes its own way"


@on_images
def test_every_claim_finds_its_figures_in_a_real_run(experiment: str, run_of: Callable[[str], Run]) -> None:
    findings = ledger([run_of(experiment)])
    seeds = run_of(experiment).info["config"]["seeds"]
    assert findings
    for finding in findings:
        if finding.claim.name == "flatter-generalises":
            continue  # not defined where every accuracy is the same, as of twelve images they may be
        assert math.isfinite(finding.result.effect)
        assert finding.result.n == seeds
        if seeds == 1:
            assert finding.result.verdict == "undecided"


@pytest.mark.parametrize("experiment", quick(["svhn"], FIGURES))
def test_every_report_starts_with_the_ledger_and_ends_with_its_rules(
    experiment: str, run_of: Callable[[str], Run]
) -> None:
    page = check_page(run_of(experiment), FIGURES[experiment])
    body, rules = html.unescape(page).split("How the claims are judged</h2>")
    for finding in ledger([run_of(experiment)]):
        assert finding.claim.statement in body
        assert finding.effect_text in body
        assert finding.claim.rule in rules
    assert run_of(experiment).summary()["preset"] in page
    assert headings(page)[-2] == "Where this run departs from the published code and the paper"


@on_images
def test_a_report_says_what_it_rests_on(experiment: str, run_of: Callable[[str], Run]) -> None:
    page = (run_of(experiment).path / "report.html").read_text(encoding="utf-8")
    assert "Preset quick" in page
    assert "of 60 " in page
    assert "(only a part of the official set)" in page
    assert "The paper has" in page


def test_a_vgg_as_published_trains_on_the_test_split_from_the_published_initialisation(data: Path) -> None:
    config = tiny("cifar10", data, init="fan-out", exchanged=True)
    made = CIFAR10.problem(config, 1)
    assert (made.split.facts["train"]["split"], made.split.facts["test"]["split"]) == ("test", "train")
    start = vgg11(derived_seed(config.seed, 1, 1), width=config.width, image_size=16, init="fan-out")
    assert torch.equal(made.risk.parameters(), torch.nn.utils.parameters_to_vector(start.parameters()))
    usual = CIFAR10.problem(replace(config, init="fan-in", exchanged=False), 1)
    assert not torch.equal(made.risk.parameters(), usual.risk.parameters())


def test_sharpness_is_measured_where_it_is_asked_for_and_at_the_end(data: Path, tmp_path: Path) -> None:
    """Steps beyond the last are not reached."""
    config = tiny("cifar10", data, seeds=1, sharpness_at=(2, 5, 99), dynamics=("gd", "sgd"))
    run = CIFAR10.run(config, tmp_path / "run", jobs=1, progress=False)
    for name in ("gd", "sgd"):
        found = recorded(run, phase="training", dynamics=name, seed=0, metric="sharpness/signed")
        assert [*found] == [2, 5, 7]
    page = check_report(run, {*FIGURES["cifar10"], "sharpness"})
    assert "Sharpness along training" in headings(page)


@pytest.mark.slow
def test_the_combined_report_holds_the_ledger_and_every_experiment(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    runs = {name: run_of(name) for name in FIGURES}
    path = write_combined_report(tmp_path, [*runs.values()], "All")
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    assert headings(page) == [
        "What holds and what does not",
        *runs,
        "What it took",
        "How the claims are judged",
    ]
    pictures = {name: 2 if name == "fashion-mnist" else 1 for name in runs}
    assert page.count("<img ") == sum(pictures.values())
    for run in runs.values():
        assert os.path.relpath(run.path / "report.html", tmp_path) in page
    assert "http-equiv" in page


@pytest.mark.slow
def test_runs_are_found_one_by_one_or_by_the_directory_around_them(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    root = run_of("svhn").path.parent
    run_of("cifar10"), run_of("fashion-mnist")
    inside = ["cifar10", "fashion-mnist", "svhn"]
    assert [run.path.name for run in open_runs([root])] == inside
    assert open_runs([run_of("svhn").path, run_of("cifar10").path]) == [run_of("svhn"), run_of("cifar10")]
    with pytest.raises(FileNotFoundError, match=r"no such directory: .*/absent"):
        open_runs([tmp_path / "absent"])
    Run.create(tmp_path / "begun", experiment="svhn", config={}, seed=0)
    with pytest.raises(FileNotFoundError, match=r"begun has no summary\.json: it did not finish"):
        open_runs([tmp_path / "begun"])
    with pytest.raises(FileNotFoundError, match="holds no complete run"):
        open_runs([tmp_path])


def test_images_come_from_the_directory_that_the_environment_names(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOISESCAPE_DATA", str(data))
    named, unnamed = (fashion_mnist_problem(tiny("fashion-mnist", place), 0).split for place in (data, None))
    assert torch.equal(named.images, unnamed.images)
    assert named.facts == unnamed.facts


def test_the_published_deviations_are_seen_in_what_is_injected(data: Path, tmp_path: Path) -> None:
    """Steps 0 and 3 of leading noise refreshed every second step; constant noise at ρ = 10⁻³."""
    config = replace(tiny("fashion-mnist", data), preset="as-published", rho=1e-3, rescale=False)
    minimum = fashion_mnist_problem(config, 0).risk.parameters()
    noise = {}
    for name in ("sgd", "gld-leading", "gld-constant"):
        outcome = escape.leave(
            config, fashion_mnist_problem, 0, minimum, name, checkpoint=tmp_path / "checkpoint.safetensors"
        )
        noise[name] = {row["step"]: row["value"] for row in outcome.rows if row["metric"] == "injected"}
        targets = {row["step"]: row["value"] for row in outcome.rows if row["metric"] == "trace_target"}
        assert noise[name].keys() == targets.keys() == {0, 3}
        risk = fashion_mnist_problem(config, 0).risk
        assert targets[0] == pytest.approx(float(risk.noise_covariance(minimum, 5).trace()), rel=1e-5)
    assert noise["sgd"][3] > 0
    assert noise["gld-leading"][0] > 0
    assert noise["gld-leading"][3] == pytest.approx(0, abs=1e-9 * noise["gld-leading"][0])
    assert noise["gld-constant"][0] == pytest.approx(1e-6 * 11_330, rel=4.5 * math.sqrt(2 / 11_330))
