"""Mistakes on the command line: one line, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli_calls import TOY, Result, the_error, the_only_error
from noisescape.runs.run import Run
from paper_runs import ON_IMAGES
from run_files import files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["reproduce", "digits", "--preset", "paper"],
            "unknown preset 'paper'; known: quick",
        ),
        (["reproduce", "toy-2d", "--replicas", "0"], "replicas must be at least 1, not 0"),
        (["reproduce", "toy-2d", "--steps", "0"], "steps must be at least 1, not 0"),
        (["reproduce", "toy-2d", "--seed", "-1"], "seed must be at least 0, not -1"),
        (["reproduce", "toy-2d", "--device", "gpu"], "unknown device 'gpu'; use cpu, cuda or cuda:N"),
        (["reproduce", "digits", "--dynamics", "sgd,gld-leding"], "did you mean gld-leading"),
        (["reproduce", "digits", "--dynamics", ""], "unknown dynamics ''"),
        (["reproduce", "digits", "--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["measure", "no_such_module:make", "--batch-size", "8"], "No module named 'no_such_module'"),
        (["measure", "laboratory", "--batch-size", "8"], "'laboratory' is not MODULE:FUNCTION"),
        (["measure", ":make_risk", "--batch-size", "8"], "':make_risk' is not MODULE:FUNCTION"),
        (
            ["measure", "laboratory:make_rsk", "--batch-size", "8"],
            "laboratory has no function 'make_rsk'; it has: make_risk, make_both",
        ),
        (["measure", "laboratory:number", "--batch-size", "8"], "laboratory:number is of type int, not a function"),
        (
            ["measure", "laboratory:make_model", "--batch-size", "8"],
            "laboratory:make_model returned Linear, not an EmpiricalRisk or (EmpiricalRisk, theta)",
        ),
        (
            ["measure", "laboratory:make_three", "--batch-size", "8"],
            "laboratory:make_three returned tuple, not an EmpiricalRisk or (EmpiricalRisk, theta)",
        ),
        (["measure", "laboratory:make_short", "--batch-size", "8"], "θ must have shape (3,), not (2,)"),
        (["measure", "laboratory:needs_path", "--batch-size", "8"], "needs_path"),
        (["measure", "laboratory:make_infinite", "--batch-size", "2"], "not finite"),
        (["measure", "laboratory:make_risk", "--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (
            ["measure", "laboratory:make_risk", "--batch-size", "13", "--without-replacement"],
            "batch_size = 13 exceeds the 12 samples",
        ),
        (["measure", "laboratory:make_risk", "--batch-size", "8", "--k", "0"], "k must be at least 1"),
        (["measure", "laboratory:make_risk", "--batch-size", "8", "--rtol", "0"], "rtol"),
        (["measure", "laboratory:make_risk", "--batch-size", "8", "--device", "abacus"], "unknown device"),
        (
            ["measure", "laboratory:make_risk", "--batch-size", "8", "--out", "nowhere/found.json"],
            "nowhere",
        ),
        *(
            (
                ["reproduce", name, "--preset", "papr", *options],
                "unknown preset 'papr'; did you mean paper? known: quick",
            )
            for name in ("toy-2d", "one-hidden-layer", *ON_IMAGES)
            for options in ([], ["--json"])
        ),
        (
            ["reproduce", "all", "--preset", "large"],
            "unknown preset 'large'; did you mean paper? known: quick, paper",
        ),
        (["reproduce", "one-hidden-layer", "--seed", "-1"], "seed must be at least 0, not -1"),
        (["reproduce", "svhn", "--seeds", "0"], "seeds must be at least 1, not 0"),
        (["reproduce", "all", "--seeds", "0"], "seeds must be at least 1, not 0"),
        (["reproduce", "fashion-mnist", "--gd-steps", "0"], "gd_steps must be at least 1, not 0"),
        (["reproduce", "cifar10", "--train", "-3"], "train must be at least 1, not -3"),
        (["reproduce", "svhn", "--seed", "-1"], "seed must be at least 0, not -1"),
        (["reproduce", "cifar10", "--device", "gpu"], "unknown device 'gpu'; use cpu, cuda or cuda:N"),
        (["reproduce", "all", "--device", "gpu"], "unknown device 'gpu'"),
        *(
            (
                ["reproduce", name, "--data-dir", "absent", "--quiet"],
                "absent; give another --data-dir or set NOISESCAPE_",
            )
            for name in ON_IMAGES
        ),
        *(
            (["reproduce", name, "--data-dir", ".", "--json", "--out", "runs/here"], "but no data set known here")
            for name in ON_IMAGES
        ),
        (
            ["reproduce", "fashion-mnist", "--data-dir", "laboratory.py", "--resume", "--quiet"],
            "there is no directory",
        ),
        (["report", "nowhere"], "no such directory: nowhere"),
        (["report", "."], "is not a run's directory: it holds no run.json"),
    ],
)
def test_a_mistake_gets_one_line(
    arguments: list[str], message: str, call: Callable[..., Result], tmp_path: Path
) -> None:
    assert message in the_error(call(*arguments))
    assert not (tmp_path / "runs").exists(), "a mistake leaves no run behind"


def test_a_gpu_that_is_not_there_is_named(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "use --device cpu" in the_error(call(*TOY, "--device", "cuda"))


def test_an_occupied_directory_is_left_alone(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("precious")
    assert "here already exists and is not empty" in the_error(call(*TOY, "--out", "here", "--quiet"))
    assert "here already exists and is not empty" in the_only_error(call(*TOY, "--out", "here"))
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["mine.txt"]
    assert "is a file" in the_error(call(*TOY, "--out", "laboratory.py", "--quiet"))


def test_a_directory_that_is_no_run_is_left_alone_by_resume(call: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "here" / "notes").mkdir(parents=True)
    (tmp_path / "here" / "notes" / ".my-notes-20240101.txt").write_text("precious")
    before = files(tmp_path)
    assert "not empty" in the_error(call(*TOY, "--resume", "--out", "here", "--quiet"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ON_IMAGES)
def test_data_that_is_missing_leaves_nothing_behind(name: str, call: Callable[..., Result], tmp_path: Path) -> None:
    result = call("reproduce", name, "--data-dir", "absent", "--out", "here")
    assert "there is no directory" in the_only_error(result)
    assert result.stdout.startswith(f"{name}: preset = quick, ")
    assert files(tmp_path) == {"laboratory.py"}


def test_an_unfinished_run_has_no_report(call: Callable[..., Result], tmp_path: Path) -> None:
    Run.create(tmp_path / "half", experiment="toy-2d", config={}, seed=0)
    assert "did not finish" in the_error(call("report", "half"))


def test_a_run_of_an_unknown_experiment_has_no_report(call: Callable[..., Result], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "other", experiment="mnist", config={}, seed=0)
    run.write_summary({})
    known = "toy-2d, one-hidden-layer, fashion-mnist, svhn, cifar10, digits"
    assert f"no report for experiment 'mnist'; known: {known}" in the_error(call("report", "other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "laboratory:make_risk"], "--batch-size"),
        (["measure", "--batch-size", "8"], "target"),
        (["reproduce", "toy2d"], "toy2d"),
        (["reproduce", "toy-2d", "--replicas", "many"], "--replicas"),
        (["reproduce", "toy-2d", "--jobs", "0"], "--jobs"),
        (["reproduce", "mnist"], "mnist"),
        (["claims"], "runs"),
    ],
)
def test_misuse_is_explained(arguments: list[str], message: str, call: Callable[..., Result]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
