"""The command line: what it prints, where it writes, and what it says to a mistake."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import noisescape as ns
from noisescape import cli
from noisescape.cli import app
from noisescape.experiments import fashion_mnist, one_hidden_layer, suite, vgg
from noisescape.experiments.claims import CLAIMS, ledger
from noisescape.experiments.toy_2d import Toy2DConfig
from noisescape.runs.run import Run
from test_experiments import files, headings
from test_paper_experiments import HIDDEN, data_directory, tiny

TOY = ["reproduce", "toy-2d", "--replicas", "20", "--control-replicas", "10", "--steps", "50", "--jobs", "1"]
SMALLEST = ["reproduce", "toy-2d", "--replicas", "2", "--steps", "3", "--jobs", "1"]
SIX = ["gd", "gld-constant", "gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector"]
COMMON = ["--seed", "--out", "--resume", "--device", "--quiet", "--json", "--jobs"]
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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that are there already are not drawn anew."""
    monkeypatch.setattr(cli, "_write_report", lambda run: run.path / "report.html")


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
    return the_only_error(result)


def the_only_error(result: Result) -> str:
    """The one line on standard error, whatever was printed before."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "an exception came through"
    assert "Traceback" not in result.stderr
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ([], ["reproduce", "claims", "measure", "report", "demo", "--version"]),
        (
            ["reproduce"],
            ["toy-2d", "one-hidden-layer", "fashion-mnist", "svhn", "cifar10", "digits", "all"],
        ),
        (["reproduce", "toy-2d"], [*COMMON, "--preset", "--replicas", "--control-replicas", "--steps"]),
        (["reproduce", "one-hidden-layer"], [*COMMON, "--preset", "--seeds"]),
        (
            ["reproduce", "fashion-mnist"],
            [*COMMON, "--preset", "--seeds", "--data-dir", "--gd-steps", "--steps"],
        ),
        (["reproduce", "svhn"], [*COMMON, "--preset", "--seeds", "--data-dir", "--steps", "--train"]),
        (["reproduce", "cifar10"], [*COMMON, "--preset", "--seeds", "--data-dir", "--steps", "--train"]),
        (["reproduce", "digits"], [*COMMON, "--seeds", "--dynamics", "--batch-size"]),
        (["reproduce", "all"], [*COMMON, "--preset", "--seeds", "--data-dir"]),
        (["claims"], ["--verbose", "--out", "--json"]),
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


def test_the_constants_are_printed_first_unless_asked_not_to(undrawn: None, call: Callable[..., Result]) -> None:
    printed = call(*SMALLEST, "--control-replicas", 0, "--out", "a")
    config = asdict(Toy2DConfig(replicas=2, control_replicas=0, steps=3))
    constants = ", ".join(f"{name} = {value}" for name, value in config.items())
    assert " ".join(printed.stdout.split()).startswith(f"toy-2d: {constants} ")
    for option in ("--quiet", "--json"):
        assert "update_trace =" not in call(*SMALLEST, "--control-replicas", 0, option).stdout


# ---------------------------------------------------------------------- the experiments of the paper

EXPERIMENTS = ("toy-2d", "one-hidden-layer", "fashion-mnist", "svhn", "cifar10")
ON_IMAGES = EXPERIMENTS[2:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_directory(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tiny_presets() -> Iterator[None]:
    """The quick presets, made to run within seconds."""
    few = {"dynamics": ("gd", "sgd"), "seeds": 1}
    hidden = replace(HIDDEN, preset="quick", epochs=3, decay_from=2, seed=0)
    toy = functools.partial(Toy2DConfig, control_replicas=2, points=10, steps=10)
    with pytest.MonkeyPatch.context() as patch:
        for presets, made in (
            (fashion_mnist.PRESETS, tiny("fashion-mnist", None, **few)),
            (vgg.SVHN_PRESETS, tiny("svhn", None, dynamics=("gd", "sgd"), steps=3)),
            (vgg.CIFAR10_PRESETS, tiny("cifar10", None, **few, steps=3)),
            (one_hidden_layer.PRESETS, hidden),
        ):
            patch.setitem(presets, "quick", made)
        patch.setitem(suite.TOY_REPLICAS, "quick", 3)
        patch.setattr(suite, "Toy2DConfig", toy)
        yield


@pytest.fixture(scope="module")
def everything(data: Path, tiny_presets: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """All of the paper by one command, and what it printed."""
    root = tmp_path_factory.mktemp("all") / "suite"
    arguments = ["reproduce", "all", "--out", str(root), "--data-dir", str(data), "--jobs", "1"]
    return root, CliRunner().invoke(app, arguments)


def test_one_command_runs_all_of_the_paper(everything: tuple[Path, Result]) -> None:
    root, result = everything
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    runs = [Run.open(root / name) for name in EXPERIMENTS]
    assert all(run.complete for run in runs)
    page = (root / "report.html").read_text(encoding="utf-8")
    assert headings(page) == [
        "What holds and what does not",
        *EXPERIMENTS,
        "What it took",
        "How the claims are judged",
    ]
    lines = result.stdout.splitlines()
    assert lines[-1] == f"report: {root / 'report.html'}"
    for name in EXPERIMENTS:
        assert sum(line.startswith(f"{name}: preset = ") for line in lines) == 1, "the constants"
        assert f"report: {root / name / 'report.html'}" in lines
    told = " ".join(result.stdout.split())
    for claim in {finding.claim for finding in ledger(runs)}:
        own = sum(name in claim.experiments for name in EXPERIMENTS)
        assert told.count(claim.statement) == own + 1, "after each of its experiments and at the end"


def never(*_: Any, **__: Any) -> Run:
    raise RuntimeError("it was run")


def test_all_of_the_paper_asks_for_its_data_before_it_starts(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "RUNNERS", {**cli.RUNNERS, "toy-2d": never, "one-hidden-layer": never})
    message = the_error(call("reproduce", "all", "--data-dir", "absent", "--out", "here", "--quiet"))
    assert "there is no directory" in message
    assert files(tmp_path) == {"laboratory.py"}


def test_all_of_the_paper_does_not_go_into_an_occupied_directory(
    data: Path, call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "RUNNERS", dict.fromkeys(cli.RUNNERS, never))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "report.html").write_text("precious")
    message = the_error(call("reproduce", "all", "--data-dir", data, "--out", "here", "--quiet"))
    assert "here already exists and is not empty" in message


def test_all_that_is_complete_is_not_run_again(
    everything: tuple[Path, Result],
    data: Path,
    undrawn: None,
    call: Callable[..., Result],
) -> None:
    root, _ = everything
    before = {name: (root / name).read_bytes() for name in files(root) if name.endswith((".parquet", ".json"))}
    found = only_json(
        call("reproduce", "all", "--out", root, "--resume", "--data-dir", data, "--jobs", 1, "--json")
    )
    assert before == {name: (root / name).read_bytes() for name in before}
    runs = [Run.open(root / name) for name in EXPERIMENTS]
    assert found.keys() == {*EXPERIMENTS, "claims", "report"}
    for run in runs:
        assert found[run.path.name] == {**run.summary(), **run.timing()}
    assert found["report"] == str(root / "report.html")
    assert len(found["claims"]) == len(ledger(runs))


@pytest.mark.parametrize("name", EXPERIMENTS[1:])
def test_each_experiment_is_a_command_with_the_same_constants(
    name: str,
    everything: tuple[Path, Result],
    data: Path,
    undrawn: None,
    call: Callable[..., Result],
) -> None:
    """Resuming compares every constant with those of the run that is there."""
    root, _ = everything
    options = ["--data-dir", data] if name in ON_IMAGES else []
    found = only_json(call("reproduce", name, "--out", root / name, "--resume", *options, "--json"))
    run = Run.open(root / name)
    assert found == {
        **run.summary(),
        **run.timing(),
        "claims": found["claims"],
        "run": str(run.path),
        "report": str(run.path / "report.html"),
    }
    assert [claim["name"] for claim in found["claims"]] == [finding.claim.name for finding in ledger([run])]
    other = call(
        "reproduce", name, "--out", root / name, "--resume", *options, "--seed", 3, "--seeds", 2, "--quiet"
    )
    assert "cannot be continued with other constants: seed = 0 there, 3 now" in the_error(other)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("one-hidden-layer", ["--seeds", 2], {"seeds": 2}),
        ("fashion-mnist", ["--gd-steps", 6, "--steps", 4, "--seeds", 2], {"gd_steps": 6, "steps": 4, "seeds": 2}),
        ("svhn", ["--steps", 2, "--train", 10, "--seeds", 1], {"steps": 2, "train": 10, "seeds": 1}),
        ("cifar10", ["--steps", 2, "--train", 11], {"steps": 2, "train": 11}),
    ],
)
def test_options_reach_the_run(
    name: str,
    options: list[Any],
    expected: dict[str, int],
    data: Path,
    tiny_presets: None,
    call: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def refused(config: Any, out: Path, **how: Any) -> Run:
        made.append((config, out, how))
        raise RuntimeError("not now")

    for runner in ("run_one_hidden_layer", "run_fashion_mnist", "run_vgg"):
        monkeypatch.setattr(cli, runner, refused)
    place = ["--data-dir", data] if name in ON_IMAGES else []
    result = call(
        "reproduce", name, *options, *place, "--seed", 7, "--out", "here", "--jobs", 3, "--quiet", "--resume"
    )
    assert the_error(result) == "error: not now"
    [(config, out, how)] = made
    assert config.experiment == name
    found = asdict(config)
    assert {key: found[key] for key in expected} == expected
    assert (config.preset, config.seed, config.device) == ("quick", 7, "cpu")
    assert getattr(config, "data_dir", str(data)) == str(data)
    assert (out, how) == (Path("here"), {"jobs": 3, "resume": True, "progress": False})


def test_a_run_on_images_prints_its_table_and_ledger(
    data: Path, tiny_presets: None, call: Callable[..., Result]
) -> None:
    result = call("reproduce", "svhn", "--data-dir", data, "--out", "here", "--jobs", 1, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("svhn: preset = quick, seeds = 1, train = 24,")
    for text in ("svhn (quick), 1 seeds", "gd ", "sgd ", "test acc.", "Flatter end points generalise better."):
        assert text in result.stdout
    assert result.stdout.splitlines()[-1] == "report: here/report.html"


# ---------------------------------------------------------------------- claims


def plain(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_the_claims_of_one_run(everything: tuple[Path, Result], call: Callable[..., Result]) -> None:
    root, _ = everything
    findings = ledger([Run.open(root / "svhn")])
    told = plain(call("claims", root / "svhn"))
    for finding in findings:
        assert finding.claim.statement in told
        assert f"{finding.effect_text}, n = {finding.result.n}" in told
        assert finding.claim.rule not in told
    assert "toy" not in told
    verbose = plain(call("claims", root / "svhn", "--verbose"))
    for finding in findings:
        assert finding.claim.statistic in verbose
        assert finding.claim.rule in verbose


def test_the_claims_of_several_runs_and_of_the_directory_around_them(
    everything: tuple[Path, Result], call: Callable[..., Result], tmp_path: Path
) -> None:
    root, _ = everything
    runs = [Run.open(path) for path in sorted(root.iterdir()) if path.is_dir()]
    for arguments in ([root], [run.path for run in runs]):
        found = only_json(call("claims", *arguments, "--json", "--out", "found.json"))
        assert json.loads((tmp_path / "found.json").read_text()) == found
        assert [(claim["name"], claim["experiment"], claim["run"]) for claim in found["findings"]] == [
            (finding.claim.name, finding.experiment, finding.run) for finding in ledger(runs)
        ]
    judged = {claim["name"] for claim in found["findings"]}
    assert judged >= {claim.name for claim in CLAIMS if not claim.control and "digits" not in claim.experiments} - {
        "accuracy-order",
        "isotropic-as-gd",
    }, "all but those on dynamics that did not run"
    told = plain(call("claims", root, "--out", "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == found
    assert "svhn" in told
    assert "toy-2d" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "no such directory: absent"),
        (["laboratory.py"], "no such directory: laboratory.py"),
        (["begun"], "the run begun has no summary.json: it did not finish"),
        (["."], ". holds no complete run"),
        (["begun", "absent"], "the run begun has no summary.json"),
    ],
)
def test_claims_need_complete_runs(
    arguments: list[str], message: str, call: Callable[..., Result], tmp_path: Path
) -> None:
    Run.create(tmp_path / "begun", experiment="svhn", config={"seeds": 1}, seed=0)
    for options in ([], ["--json"], ["--out", "found.json"]):
        assert message in the_error(call("claims", *arguments, *options))
    assert not (tmp_path / "found.json").exists()


def test_claims_that_cannot_be_written_are_told(
    everything: tuple[Path, Result], call: Callable[..., Result]
) -> None:
    root, _ = everything
    assert "nowhere" in the_error(call("claims", root / "svhn", "--out", "nowhere/found.json"))


# ---------------------------------------------------------------------- resume


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    """A toy of the smallest size that stopped before its first task."""
    config = asdict(Toy2DConfig(replicas=2, control_replicas=1, steps=3))
    path = tmp_path / "runs" / "toy-2d-20260101-000000"
    return Run.create(path, experiment="toy-2d", config=config, seed=0)


RESUMED = [*SMALLEST, "--control-replicas", "1", "--resume"]


def test_without_a_place_the_latest_unfinished_run_is_resumed(
    begun: Run, undrawn: None, call: Callable[..., Result], tmp_path: Path
) -> None:
    earlier = Run.create(tmp_path / "runs" / "toy-2d-20250101-000000", experiment="toy-2d", config={}, seed=0)
    other = Run.create(tmp_path / "runs" / "digits-20270101-000000", experiment="digits", config={}, seed=0)
    found = only_json(call(*RESUMED, "--json"))
    assert Path(found["run"]).resolve() == begun.path.resolve()
    assert begun.complete
    assert not earlier.complete
    assert not other.complete
    assert len([*(tmp_path / "runs").iterdir()]) == 3


def test_with_nothing_to_resume_a_new_run_is_made(
    begun: Run, undrawn: None, call: Callable[..., Result], tmp_path: Path
) -> None:
    begun.write_summary({})
    begun.write_report("<p>all told</p>")
    found = only_json(call(*RESUMED, "--json"))
    assert Path(found["run"]).resolve() != begun.path.resolve()
    assert Run.open(found["run"]).complete
    assert begun.summary() == {}


def test_the_run_at_a_place_is_resumed(
    begun: Run, undrawn: None, call: Callable[..., Result], tmp_path: Path
) -> None:
    found = only_json(call(*RESUMED, "--out", begun.path, "--json"))
    assert Path(found["run"]) == begun.path
    assert begun.complete
    again = only_json(call(*RESUMED, "--out", begun.path, "--json"))
    assert again == found, "timing and all: nothing was done"
    elsewhere = only_json(call(*RESUMED, "--out", "new", "--json"))
    assert Run.open(tmp_path / "new").complete
    assert {**elsewhere, **dict.fromkeys(("seconds", "task_seconds", "run", "report", "claims"))} == {
        **found,
        **dict.fromkeys(("seconds", "task_seconds", "run", "report", "claims")),
    }


def test_a_run_is_not_resumed_with_other_constants(begun: Run, call: Callable[..., Result]) -> None:
    before = files(begun.path)
    for place in ([], ["--out", begun.path]):
        message = the_error(call(*RESUMED, "--seed", 1, "--quiet", *place))
        assert "cannot be continued with other constants: seed = 0 there, 1 now" in message
        message = the_error(call(*RESUMED, "--steps", 4, "--quiet", *place))
        assert "steps = 3 there, 4 now" in message
    assert "is a run of 'toy-2d', not of 'digits'" in the_error(
        call("reproduce", "digits", "--resume", "--out", begun.path, "--quiet")
    )
    assert files(begun.path) == before


def test_without_resume_a_begun_run_is_refused(begun: Run, call: Callable[..., Result]) -> None:
    message = the_error(call(*RESUMED[:-1], "--out", begun.path, "--quiet"))
    assert "already exists and is not empty" in message


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
        *(
            (
                ["reproduce", name, "--preset", "papr", *options],
                "unknown preset 'papr'; did you mean paper? known: quick",
            )
            for name in EXPERIMENTS[1:]
            for options in ([], ["--json"])
        ),
        (["reproduce", "all", "--preset", "large"], "unknown preset 'large'; known: quick, paper, as-published"),
        (["reproduce", "one-hidden-layer", "--seed", "-1"], "seed must be at least 0, not -1"),
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
        (["reproduce", "svhn", "--seeds", "0"], "--seeds"),
        (["reproduce", "fashion-mnist", "--gd-steps", "0"], "--gd-steps"),
        (["reproduce", "cifar10", "--train", "-3"], "--train"),
        (["reproduce", "mnist"], "mnist"),
        (["claims"], "runs"),
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
