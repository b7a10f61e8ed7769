"""The README's figures of speed are those of the committed measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
README = " ".join((ROOT / "README.md").read_text().split())


def ratios(name: str) -> dict[tuple[str, str], float]:
    """(work, against) → the ratio measured."""
    result: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return {(row["work"], row["against"]): row["ratio"] for row in result["rows"]}


def said(pattern: str) -> list[float]:
    """The numbers that the README gives where it says this."""
    found = re.search(pattern, README)
    assert found, pattern
    return [float(number) for number in found.groups()]


def test_the_indicator() -> None:
    measured = ratios("indicator")
    of_ours = {against: ratio for (work, against), ratio in measured.items() if work == "Tr(HΣ) to 1 %"}
    dense, own = of_ours.pop("the dense way"), of_ours.pop("gradient")
    assert said(r"to 1 % costs (\d+) gradients") == [round(own)]
    assert said(r"(\d+) times faster than the dense way") == [round(dense)]
    assert said(r"([\d.]+) times faster than the best composition") == [round(min(of_ours.values()), 1)]


def test_the_indicator_of_a_transformer() -> None:
    measured = ratios("indicator_transformer")
    own, rival = (
        next(ratio for (_, side), ratio in measured.items() if name in side) for name in ("gradient", "XTrace")
    )
    assert said(r"million parameters (\d+) gradients, (\d+) times faster") == [round(own), round(rival)]


def test_first_looks_with_many_samples() -> None:
    looks = {work: ratio for (work, _), ratio in ratios("measure").items() if work.startswith("a first look")}
    many = [ratio for work, ratio in looks.items() if "more samples" in work or "LeNet" in work]
    assert len(many) == 5
    assert said(r"`measure_fast`, takes (\d+) to (\d+) with as many samples") == [
        round(min(many)),
        round(max(many)),
    ]
