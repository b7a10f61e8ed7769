"""The command line: what it prints, where it writes, and what it says to a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import noisescape as ns
from noisescape.cli import app
from noisescape.runs import Run

TOY = ["reproduce", "toy-2d", "--replicas", "20", "--control-replicas", "10", "--steps", "50", "--jobs", "1"]
SMALLEST = ["reproduce", "toy-2d", "--replicas", "2", "--steps", "3", "--jobs", "1"]
SIX = ["gd", "gld-constant", "gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector"]
Result = Any  # typer does not export its runner's
MODULE = """
import torch
import noisescape as ns

number = 3
points = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
start = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)


def make_risk():
    return ns.EmpiricalRisk.from_losses(lambda w: ((w - points) ** 4).sum(1), start)


def make_both():
    return make_risk(), start + 1


def make_network():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return ns.EmpiricalRisk(model, torch.nn.functional.mse_loss, (torch.randn(9, 3), torch.randn(9, 2)))


def make_model():
    return torch.nn.Linear(3, 2)


def make_three():
    return make_risk(), start, start


def make_short():
    return make_risk(), start[:2]


def needs_path(path):
    return make_risk()


def make_infinite():
    return ns.EmpiricalRisk.from_losses(lambda w: w / 0 * torch.ones(4, dtype=w.dtype)[:, None].sum(1), start[:1])


def _hidden():
    return make_risk()
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run a command in an empty directory that holds ``laboratory.py``."""
    (tmp_path / "laboratory.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    sys.modules.pop("laboratory", None)


def only_json(result: Result) -> dict[str, object]:
    """The one object that is all of standard output."""
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def the_error(result: Result) -> str:
    """The one line that a mistake gets."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "an exception came through"
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ([], ["reproduce", "measure", "report", "demo", "--version"]),
        (["reproduce"], ["toy-2d", "digits"]),
        (
            ["reproduce", "toy-2d"],
            ["--preset", "--replicas", "--seed", "--out", "--device", "--quiet", "--json", "--jobs"],
        ),
        (
            ["reproduce", "digits"],
            ["--seeds", "--dynamics", "--seed", "--out", "--device", "--quiet", "--json", "--jobs"],
        ),
        (
            ["measure"],
            ["--batch-size", "--without-replacement", "--seed", "--out", "--device", "--quiet", "--json"],
        ),
        (["report"], ["--quiet", "--json"]),
        (["demo"], ["--seed", "--out", "--quiet"]),
    ],
)
def test_every_command_helps(command: list[str], mentions: list[str], call: Callable[..., Result]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in mentions)


def test_the_version_is_the_packages(call: Callable[..., Result]) -> None:
    assert call("--version").stdout.strip() == f"noisescape {ns.__version__}"


# ---------------------------------------------------------------------- reproduce and report


def test_json_is_one_object_with_the_six_rates(call: Callable[..., Result], tmp_path: Path) -> None:
    found = only_json(call(*TOY, "--json"))
    assert list(found["success"]) == SIX
    for name in SIX:
        rate = found["success"][name]
        assert rate.keys() == {"rate", "low", "high", "n"}
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
        assert rate["n"] == 20
        assert {found["controls"][control]["success"][name]["n"] for control in found["controls"]} == {10}
    run = Run.open(found["run"])
    assert run.path.resolve().parent == tmp_path / "runs"
    assert run.complete
    assert Path(found["report"]).is_file()


def test_a_run_goes_where_it_is_told_and_shows_a_table(call: Callable[..., Result], tmp_path: Path) -> None:
    result = call(*SMALLEST, "--control-replicas", 1, "--out", "here", "--seed", 5, "--preset", "as-published")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in (*SIX, "rotated", "isotropic"))
    assert result.stdout.splitlines()[-1] == "report: here/report.html"
    run = Run.open(tmp_path / "here")
    assert (run.info["seed"], run.info["config"]["preset"]) == (5, "as-published")
    assert (run.info["config"]["replicas"], run.info["config"]["steps"]) == (2, 3)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "here" / "report.html").unlink()
    found = only_json(call("report", "here", "--json"))
    assert found == {"report": "here/report.html", **run.summary()}
    assert (tmp_path / "here" / "report.html").is_file()


def test_quiet_shows_no_table(call: Callable[..., Result]) -> None:
    result = call(*SMALLEST, "--control-replicas", 0, "--quiet", "--out", "here")
    assert result.exit_code == 0
    assert result.stdout == "report: here/report.html\n"
    assert result.stderr == ""


# ---------------------------------------------------------------------- measure


def test_measure_prints_a_table(call: Callable[..., Result]) -> None:
    result = call("measure", "laboratory:make_risk", "--batch-size", 8)
    assert result.exit_code == 0
    assert "D = 3, N = 12, B = 8 with replacement" in result.stdout
    assert "Tr(HΣ)" in result.stdout
    assert call("measure", "laboratory:make_risk", "--batch-size", 8, "--quiet").stdout == ""


def test_measure_gives_the_librarys_figures_as_json(call: Callable[..., Result], tmp_path: Path) -> None:
    arguments = ("--batch-size", 8, "--without-replacement", "--k", 2, "--json", "--out", "found.json")
    found = only_json(call("measure", "laboratory:make_risk", *arguments))
    assert json.loads((tmp_path / "found.json").read_text()) == found
    import laboratory

    risk = laboratory.make_risk()
    expected = ns.measure(risk, risk.parameters(), batch_size=8, replacement=False, k=2)
    assert found["trace_h_sigma"]["value"] == expected.trace_h_sigma.value
    assert found["replacement"] is False
    assert found["k"] == 2


def test_measure_is_at_the_returned_parameters(call: Callable[..., Result]) -> None:
    found = only_json(call("measure", "laboratory:make_both", "--batch-size", 8, "--json"))
    import laboratory

    risk, theta = laboratory.make_both()
    assert found["loss"]["value"] == float(risk.loss(theta))
    assert found["loss"]["value"] != float(risk.loss(risk.parameters()))


def test_measure_takes_a_network_and_a_device(call: Callable[..., Result]) -> None:
    arguments = ("--batch-size", 4, "--device", "cpu", "--json")
    assert only_json(call("measure", "laboratory:make_network", *arguments))["dimension"] == 8


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "toy-2d", "--preset", "corected"], "unknown preset 'corected'; known: corrected"),
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
    assert "here already exists and is not empty" in the_error(call(*TOY, "--out", "here"))
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["mine.txt"]
    assert "is a file" in the_error(call(*TOY, "--out", "laboratory.py"))


def test_an_unfinished_run_has_no_report(call: Callable[..., Result], tmp_path: Path) -> None:
    Run.create(tmp_path / "half", experiment="toy-2d", config={}, seed=0)
    assert "did not finish" in the_error(call("report", "half"))


def test_a_run_of_an_unknown_experiment_has_no_report(call: Callable[..., Result], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "other", experiment="mnist", config={}, seed=0)
    run.write_summary({})
    assert "no report for experiment 'mnist'; known: toy-2d, digits" in the_error(call("report", "other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "laboratory:make_risk"], "--batch-size"),
        (["measure", "--batch-size", "8"], "target"),
        (["reproduce", "toy2d"], "toy2d"),
        (["reproduce", "toy-2d", "--replicas", "many"], "--replicas"),
        (["reproduce", "toy-2d", "--jobs", "0"], "--jobs"),
    ],
)
def test_misuse_is_explained(arguments: list[str], message: str, call: Callable[..., Result]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


# ---------------------------------------------------------------------- as a program

COMMAND = [sys.executable, "-c", "from noisescape.cli import app; app(prog_name='noisescape')"]


def test_a_module_of_the_working_directory_is_found_by_the_program(call: object, tmp_path: Path) -> None:
    target = ["measure", "laboratory:make_risk", "--batch-size", "8", "--json"]
    done = subprocess.run([*COMMAND, *target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["dimension"] == 3
    assert done.stderr == ""


def test_the_program_fails_with_one_line_and_code_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "report", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no such directory: nowhere\n"
