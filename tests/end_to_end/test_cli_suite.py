"""All of the paper by one command, each experiment by its own, and the claims judged by both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli_calls import Result, only_json, plain, the_error
from noisescape.cli import app
from noisescape.errors import FailedError
from noisescape.experiments.cifar10 import CIFAR10
from noisescape.experiments.claims import CLAIMS, ledger
from noisescape.experiments.experiment import Experiment
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER
from noisescape.experiments.svhn import SVHN
from noisescape.experiments.toy_2d import TOY_2D, Toy2DConfig
from noisescape.runs.local_engine import Local
from noisescape.runs.run import Run
from paper_runs import HIDDEN, ON_IMAGES, tiny
from run_files import files, headings

PAPER = ("toy-2d", "one-hidden-layer", *ON_IMAGES)


@pytest.fixture(scope="module")
def tiny_presets() -> Iterator[None]:
    """The quick presets, made to run within seconds."""
    few = {"dynamics": ("gd", "sgd"), "seeds": 1}
    hidden = replace(HIDDEN, preset="quick", epochs=3, decay_from=2, seed=0)
    toy = Toy2DConfig(replicas=3, control_replicas=2, points=10, steps=10)
    with pytest.MonkeyPatch.context() as patch:
        for experiment, made in (
            (FASHION_MNIST, tiny("fashion-mnist", None, **few)),
            (SVHN, tiny("svhn", None, dynamics=("gd", "sgd"), steps=3)),
            (CIFAR10, tiny("cifar10", None, **few, steps=3)),
            (ONE_HIDDEN_LAYER, hidden),
            (TOY_2D, toy),
        ):
            patch.setitem(experiment.presets, "quick", made)
        yield


@pytest.fixture(scope="module")
def everything(data: Path, tiny_presets: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """All of the paper by one command, and what it printed."""
    root = tmp_path_factory.mktemp("all") / "suite"
    arguments = ["reproduce", "all", "--out", str(root), "--data-dir", str(data), "--jobs", "1"]
    return root, CliRunner().invoke(app, arguments)


@pytest.mark.slow
def test_one_command_runs_all_of_the_paper(everything: tuple[Path, Result]) -> None:
    root, result = everything
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    runs = [Run.open(root / name) for name in PAPER]
    assert all(run.complete for run in runs)
    page = (root / "report.html").read_text(encoding="utf-8")
    assert headings(page) == [
        "What holds and what does not",
        *PAPER,
        "What it took",
        "How the claims are judged",
    ]
    lines = result.stdout.splitlines()
    assert lines[-1] == f"report: {root / 'report.html'}"
    for name in PAPER:
        assert sum(line.startswith(f"{name}: preset = ") for line in lines) == 1, "the constants"
        assert f"report: {root / name / 'report.html'}" in lines
    shown = " ".join(result.stdout.split())
    for claim in {finding.claim for finding in ledger(runs)}:
        own = sum(name in claim.experiments for name in PAPER)
        assert shown.count(claim.statement) == own + 1, "after each of its experiments and at the end"


def never(*_: Any, **__: Any) -> Run:
    raise RuntimeError("it was run")


def test_all_of_the_paper_asks_for_its_data_before_it_starts(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "run", never)
    message = the_error(call("reproduce", "all", "--data-dir", "absent", "--out", "here", "--quiet"))
    assert "there is no directory" in message
    assert files(tmp_path) == {"laboratory.py"}


def test_all_of_the_paper_does_not_go_into_an_occupied_directory(
    data: Path, tiny_presets: None, call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "run", never)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "report.html").write_text("precious")
    message = the_error(call("reproduce", "all", "--data-dir", data, "--out", "here", "--quiet"))
    assert "here already exists and is not empty" in message


@pytest.mark.slow
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
    runs = [Run.open(root / name) for name in PAPER]
    assert found.keys() == {*PAPER, "claims", "report"}
    for run in runs:
        assert found[run.path.name] == {**run.summary(), **run.timing()}
    assert found["report"] == str(root / "report.html")
    assert len(found["claims"]) == len(ledger(runs))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER[1:])
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

    def refused(self: Experiment, config: Any, out: Path, **how: Any) -> Run:
        made.append((self.name, config, out, how))
        raise FailedError("not now")

    monkeypatch.setattr(Experiment, "run", refused)
    place = ["--data-dir", data] if name in ON_IMAGES else []
    result = call(
        "reproduce", name, *options, *place, "--seed", 7, "--out", "here", "--jobs", 3, "--quiet", "--resume"
    )
    assert the_error(result) == "error: not now"
    [(experiment, config, out, how)] = made
    assert experiment == config.experiment == name
    found = asdict(config)
    assert {key: found[key] for key in expected} == expected
    assert (config.preset, config.seed, config.device) == ("quick", 7, "cpu")
    assert getattr(config, "data_dir", str(data)) == str(data)
    assert (out, how) == (Path("here"), {"engine": Local(3), "resume": True, "progress": False})


def test_a_run_on_images_prints_its_table_and_ledger(
    data: Path, tiny_presets: None, call: Callable[..., Result]
) -> None:
    result = call("reproduce", "svhn", "--data-dir", data, "--out", "here", "--jobs", 1, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("svhn: preset = quick, seeds = 1, ")
    assert "train = 24, test = 12," in " ".join(result.stdout.split())
    for text in ("svhn (quick), 1 seed", "gd ", "sgd ", "test acc.", "Flatter end points generalise better."):
        assert text in result.stdout
    assert result.stdout.splitlines()[-1] == "report: here/report.html"


@pytest.mark.slow
def test_the_claims_of_one_run(everything: tuple[Path, Result], call: Callable[..., Result]) -> None:
    root, _ = everything
    findings = ledger([Run.open(root / "svhn")])
    shown = plain(call("claims", root / "svhn"))
    for finding in findings:
        assert finding.claim.statement in shown
        assert f"{finding.effect_text}, n = {finding.result.n}" in shown
        assert finding.claim.rule not in shown
    assert "toy" not in shown
    verbose = plain(call("claims", root / "svhn", "--verbose"))
    for finding in findings:
        assert finding.claim.statistic in verbose
        assert finding.claim.rule in verbose


@pytest.mark.slow
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
    assert judged >= {
        claim.name for claim in CLAIMS if not claim.control and set(claim.experiments) <= {*PAPER}
    } - {
        "accuracy-order",
        "isotropic-as-gd",
        "flatter-from-initialisation",
    }, "all but those on dynamics that did not run, or not to a level of the loss"
    shown = plain(call("claims", root, "--out", "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == found
    assert "svhn" in shown
    assert "toy-2d" in shown


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


@pytest.mark.slow
def test_a_ledger_that_cannot_be_written_is_an_error(
    everything: tuple[Path, Result], call: Callable[..., Result]
) -> None:
    root, _ = everything
    assert "nowhere" in the_error(call("claims", root / "svhn", "--out", "nowhere/found.json"))
