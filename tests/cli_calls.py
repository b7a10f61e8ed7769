"""What the tests of the command line call it with, and read from what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

TOY = ["reproduce", "toy-2d", "--replicas", "20", "--control-replicas", "10", "--steps", "50", "--jobs", "1"]
SMALLEST = ["reproduce", "toy-2d", "--replicas", "2", "--steps", "3", "--jobs", "1"]


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


def plain(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())
