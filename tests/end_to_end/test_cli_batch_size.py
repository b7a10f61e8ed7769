"""What batch size, asked on the command line: of a log, and of branches trained from a user's own checkpoint."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import noisescape as ns
from cli_calls import Result, only_json, plain, the_error
from noisescape.report.tables import batch_size_table, branches_table, caveats_text
from noisescape.runs.run import strict_json
from noisescape.training import BatchSizeAdvice, branched_check, read_log

REPORT = {
    "noise/step": 300,
    "noise/batch_size": 4,
    "noise/trace_covariance": 12.0,
    "noise/squared_gradient_norm": 0.1,
    "noise/scale": 120.0,
    "noise/scale_low": 90.0,
    "noise/scale_high": 170.0,
    "noise/lr": 0.05,
}
UNBOUNDED = REPORT | {"noise/squared_gradient_norm": -0.02, "noise/scale": -600.0, "noise/scale_high": float("inf")}
THEIRS = """
import torch
from branch_cases import lively, lively_data

def make():
    model = lively()
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "loss": torch.nn.functional.cross_entropy,
        "data": lively_data(),
        "samples": 64,
        "tolerance": 0.1,
    }

def make_other():
    return {**make(), "batch_size": 2, "multiples": (1, 4), "seeds": 2}

def make_model():
    return lively()

def make_less():
    return {"model": lively()}

def make_more():
    return {**make(), "learning_rate": 0.1}
"""


@pytest.fixture(autouse=True)
def log(call: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log, and beside it a module of the user's own."""
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "log.jsonl"
    path.write_text(json.dumps(REPORT) + "\n")
    return path


def the_check(**changed: Any) -> dict[str, Any]:
    import theirs

    given = {"batch_size": 4, **theirs.make(), **changed}
    return json.loads(strict_json(branched_check(**given).to_dict()))


@pytest.mark.parametrize("place", ["run/log.jsonl", "run"])
def test_a_log_or_its_directory_is_answered_by_a_table(place: str, call: Callable[..., Result]) -> None:
    text = plain(call("batch-size", place))
    advice = BatchSizeAdvice.from_report(REPORT)
    assert "batch size 4 → 8" in text
    assert "B_noise 120 90 – 170 samples; Tr C/‖ḡ‖²" in text
    assert f"steps {advice.steps.value:.4g} {advice.steps.low:.4g} – {advice.steps.high:.4g}" in text
    assert "lr, noise-scale 0.09" in text
    for caveat in advice.caveats:
        assert caveat in text
    assert call("batch-size", place, "--quiet").stdout == ""


def test_json_has_what_the_library_says(call: Callable[..., Result], tmp_path: Path, log: Path) -> None:
    options = ("--batch-size", 64, "--optimizer", "adam", "--lr", 0.002)
    found = only_json(call("batch-size", "run", *options, "--json", "--out", "found.json"))
    expected = BatchSizeAdvice.from_log(read_log(log), target=64, optimizer="adam", lr=0.002)
    assert found == {"advice": json.loads(strict_json(expected.to_dict()))}
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_an_interval_without_an_end_is_shown_as_such(call: Callable[..., Result], log: Path) -> None:
    log.write_text(json.dumps(UNBOUNDED) + "\n")
    text = plain(call("batch-size", "run"))
    assert "B_noise – 90 – ∞" in text
    assert "steps – 0.5 – " in text
    found = only_json(call("batch-size", "run", "--json"))
    assert found["advice"]["noise_scale"] == {"value": None, "low": 90.0, "high": None}  # type: ignore[index]


def test_branches_are_trained_from_a_checkpoint(call: Callable[..., Result]) -> None:
    options = ("--multiples", "1,2", "--samples", 32, "--seeds", 2, "--tolerance", 0.3)
    found = only_json(call("batch-size", "run", "--check", "theirs:make", *options, "--json"))
    assert found["check"] == the_check(multiples=(1, 2), samples=32, seeds=2, tolerance=0.3)
    text = plain(call("batch-size", "run", "--check", "theirs:make", *options))
    assert "branches from the checkpoint" in text
    assert "Measured critical batch size: " in text
    assert call("batch-size", "run", "--check", "theirs:make", *options, "--quiet").stdout == ""


def test_what_the_function_says_counts_before_the_log(call: Callable[..., Result]) -> None:
    found: Any = only_json(call("batch-size", "run", "--check", "theirs:make_other", "--json"))
    assert [branch["batch_size"] for branch in found["check"]["branches"]] == [2, 8]
    assert found["advice"]["batch_size"] == 4
    found = only_json(call("batch-size", "run", "--check", "theirs:make_other", "--seeds", 3, "--json"))
    assert found["check"]["seeds"] == [0, 1, 2]


def test_a_check_goes_on_in_its_directory(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--check", "theirs:make", "--multiples", "1,2", "--seeds", 2, "--run", "kept", "--json")
    first = only_json(call("batch-size", "run", *options))
    monkeypatch.setattr("noisescape.training.branch_training.Laboratory.train", lambda *_: pytest.fail("again"))
    assert only_json(call("batch-size", "run", *options)) == first
    assert len(list((tmp_path / "kept").glob("branch-*.json"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["theirs.py"], "theirs.py"),
        (["run", "--batch-size", 4], "target is batch_size itself, 4"),
        (["run", "--batch-size", 0], "target must be a whole number of at least 1, not 0"),
        (["run", "--optimizer", "lion"], 'optimizer must be "sgd" or "adam", not \'lion\''),
        (["run", "--lr", 0], "lr must be positive, not 0"),
        (["run", "--seeds", 3, "--run", "kept"], "--seeds, --run only with --check MODULE:FUNCTION"),
        (["run", "--check", "theirs"], "'theirs' is not MODULE:FUNCTION"),
        (["run", "--check", "theirs:mke"], "theirs has no function 'mke'"),
        (
            ["run", "--check", "theirs:make_model"],
            "theirs:make_model returned Lively, not a dict of branched_check's",
        ),
        (["run", "--check", "theirs:make_less"], "but: missing a required argument: 'optimizer'"),
        (["run", "--check", "theirs:make_more"], "but: got an unexpected keyword argument 'learning_rate'"),
        (["run", "--check", "theirs:make", "--multiples", "1;2"], "multiples are whole numbers with commas"),
    ],
)
def test_a_mistake_gets_one_line(arguments: list[str], message: str, call: Callable[..., Result]) -> None:
    assert message in the_error(call("batch-size", *arguments))


# ---------------------------------------------------------------------- 80 columns


def lines(shown: Any) -> list[str]:
    text = io.StringIO()
    Console(width=80, file=text).print(shown)
    return text.getvalue().splitlines()


WIDEST = UNBOUNDED | {
    "noise/batch_size": 131072,
    "noise/lr": 0.00012345,
    **{f"noise/preconditioned/{name}": UNBOUNDED[f"noise/{name}"] for name in ("scale", "scale_low", "scale_high")},
}


@pytest.mark.parametrize("report", [REPORT, UNBOUNDED, WIDEST, REPORT | {"noise/scale_high": 1.23456e7}])
def test_no_number_is_broken_in_80_columns(report: dict[str, float]) -> None:
    found = BatchSizeAdvice.from_report(report, target=3 * int(report["noise/batch_size"])).to_dict()
    table = batch_size_table(found)
    text = lines(table.to_rich("batch size"))
    assert max(map(len, text)) <= 80
    assert "…" not in "".join(text)
    for row in table.rows:
        assert (
            sum(re.search(r"\s+".join(map(re.escape, filter(None, row))), line) is not None for line in text) == 1
        )


def test_the_branches_fit_too() -> None:
    import theirs

    given = {**theirs.make(), "batch_size": 4, "multiples": (1, 2, 4), "seeds": 2, "samples": 48}
    given["evaluation"] = lambda model: 123456.789 + 1e-3 * float(next(iter(model.parameters())).sum())
    found = branched_check(**given).to_dict()
    found["branches"][2] |= {"diverged": 2, "verdict": "worse"}
    for branch in found["branches"]:
        branch["batch_size"] *= 100000
        branch["lr"] *= 1.2345e-4
        branch["steps"] += 123456
    table = branches_table(found)
    text = lines(table.to_rich("branches"))
    assert max(map(len, text)) <= 80
    assert "…" not in "".join(text)
    for row in table.rows:
        shown = [cell for cell, column in zip(row, table.columns, strict=True) if column not in table.wide]
        assert any(re.search(r"\s+".join(map(re.escape, shown)), line) for line in text)
    assert "diverged" in table.rows[2]


def test_the_answers_of_tables_and_library_are_the_same() -> None:
    found = ns.batch_size_advice(100.0, batch_size=10)
    assert [row[0] for row in batch_size_table(found.to_dict()).rows] == [
        "B_noise",
        "B_noise/B",
        "steps",
        "samples",
        "lr ×, noise-scale",
        "lr ×, linear",
    ]
    assert str(caveats_text(found.to_dict())).count("* ") == len(found.caveats)


@pytest.mark.parametrize(
    ("bracket", "low", "high", "answer"),
    [
        ("at least", 16, None, "at least 16"),
        ("between", 16, 64, "between 16 and 64"),
        ("below", None, 4, "below 4"),
        ("undecided", None, None, "undecided"),
    ],
)
def test_every_bracket_is_said(bracket: str, low: int | None, high: int | None, answer: str) -> None:
    checked = ns.BranchedCheck((), low, high, 0.1, (0, 1), "linear", 1.0)
    assert (checked.bracket, checked.answer) == (bracket, answer)
    assert f"critical batch size: {answer}" in branches_table(checked.to_dict()).caption
