"""The command line's help and version."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import noisescape as ns
from cli_calls import COMMON, Result


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        (
            [],
            [
                "reproduce",
                "claims",
                "measure",
                "batch-size",
                "report",
                "watch",
                "demo",
                "--version",
                "--debug",
                "--install-completion",
            ],
        ),
        (
            ["reproduce"],
            [
                *("toy-2d", "one-hidden-layer", "fashion-mnist", "svhn", "cifar10", "digits", "noise-knob"),
                *("quantities", "gd-sharpness", "all"),
            ],
        ),
        (["reproduce", "toy-2d"], [*COMMON, "--preset", "--replicas", "--control-replicas", "--steps"]),
        (["reproduce", "one-hidden-layer"], [*COMMON, "--preset", "--seeds"]),
        (
            ["reproduce", "fashion-mnist"],
            [*COMMON, "--preset", "--seeds", "--data-dir", "--gd-steps", "--steps"],
        ),
        (["reproduce", "svhn"], [*COMMON, "--preset", "--seeds", "--data-dir", "--steps", "--train"]),
        (["reproduce", "cifar10"], [*COMMON, "--preset", "--seeds", "--data-dir", "--steps", "--train"]),
        (["reproduce", "digits"], [*COMMON, "--preset", "--seeds", "--dynamics", "--batch-size"]),
        (
            ["reproduce", "noise-knob"],
            [*COMMON, "--preset", "--seeds", "--data-dir", "--steps", "--batch-size", "--small-batch-size"],
        ),
        (
            ["reproduce", "quantities"],
            [*COMMON, "--preset", "--seeds", "--data-dir", "--steps", "--gd-steps", "--activation"],
        ),
        (
            ["reproduce", "gd-sharpness"],
            [*COMMON, "--preset", "poster", "--seeds", "--data-dir", "--measure-every"],
        ),
        (["reproduce", "all"], [*COMMON, "--preset", "--seeds", "--data-dir"]),
        (["claims"], ["--verbose", "--out", "--json"]),
        (
            ["measure"],
            ["--batch-size", "--without-replacement", "--seed", "--out", "--device", "--quiet", "--json"],
        ),
        (
            ["batch-size"],
            ["RUN_OR_LOG", "--batch-size", "--optimizer", "--lr", "--check", "--multiples", "--run", "--json"],
        ),
        (["report"], ["--out", "--prefix", "--quiet", "--json"]),
        (["watch"], ["--once", "--every", "--prefix"]),
        (["demo"], ["--seed", "--out", "--quiet"]),
    ],
)
def test_every_command_helps(command: list[str], mentions: list[str], call: Callable[..., Result]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in mentions)


def test_the_version_is_the_packages(call: Callable[..., Result]) -> None:
    assert call("--version").stdout.strip() == f"noisescape {ns.__version__}"


@pytest.mark.parametrize("group", [[], ["reproduce"], ["lab"]], ids=["noisescape", "reproduce", "lab"])
def test_no_line_of_help_is_cut_off_at_80_columns(
    group: list[str], call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(*group, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")], "beyond the line of usage"
