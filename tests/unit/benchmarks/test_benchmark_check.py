"""The comparison of benchmark ratios: what counts as worse, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.check import regressions
from benchmarks.harness import Outcome, Row, interleaved, write


def stored(folder: Path, **ratios: tuple[float, str]) -> Path:
    outcome = Outcome()
    for work, (ratio, better) in ratios.items():
        outcome.rows.append(Row(work, "noisescape", "rival", ratio, better))
    write("products", outcome, 1.0, folder)
    return folder


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        ({"product": (1.0, "lower"), "toy": (2000.0, "higher")}, 0),
        ({"product": (1.2, "lower"), "toy": (1700.0, "higher")}, 0),
        ({"product": (0.1, "lower"), "toy": (9000.0, "higher")}, 0),
        ({"product": (1.3, "lower"), "toy": (2000.0, "higher")}, 1),
        ({"product": (1.0, "lower"), "toy": (1500.0, "higher")}, 1),
        ({"product": (1.0, "lower")}, 1),
    ],
)
def test_only_ratios_that_got_worse_are_listed(
    tmp_path: Path, after: dict[str, tuple[float, str]], lines: int
) -> None:
    committed = stored(tmp_path / "old", product=(1.0, "lower"), toy=(2000.0, "higher"))
    assert len(regressions(committed, stored(tmp_path / "new", **after))) == lines


def test_a_row_is_a_ratio_of_medians_with_its_spread_and_target(tmp_path: Path) -> None:
    outcome = Outcome(seconds={"ours": [1.0, 2.0, 9.0], "theirs": [4.0, 4.0, 4.0]})
    row = outcome.compare("product", "ours", "theirs", target=1.05)
    assert (row.ratio, row.met) == (0.5, True)
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.ratio < row.high
    assert outcome.compare("speed", "ours", "theirs", better="higher", target=4).met is False
    found: dict[str, Any] = json.loads(write("x", outcome, 1.0, tmp_path).read_text())
    assert [row["met"] for row in found["rows"]] == [True, False]
    assert found["median_seconds"]["ours"] == 2


def test_sides_that_differ_are_not_timed() -> None:
    outcome = Outcome()
    outcome.agree("same", torch.ones(3), torch.ones(3) + 1e-9, 1e-6)
    with pytest.raises(RuntimeError, match="the sides differ"):
        outcome.agree("other", torch.ones(3), torch.zeros(3) + 0.9, 1e-6)


def test_sides_take_turns() -> None:
    order: list[str] = []
    found = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert {name: len(each) for name, each in found.items()} == {"a": 2, "b": 2}
