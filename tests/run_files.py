"""What a run leaves behind, and the checks that every experiment's run goes through."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from torch.testing import assert_close

from noisescape.experiments.digits import DigitsConfig
from noisescape.experiments.toy_2d import Toy2DConfig
from noisescape.report import write_report
from noisescape.runs.run import Run

ARMS = [
    *("gd", "gld-constant", "gld-diagonal", "gld-leading", "gld-hessian", "gld-top-eigenvector"),
    "gld-leading-1",
]
"""The arms of the toy."""

TINY = Toy2DConfig(replicas=7, control_replicas=4, points=20, steps=60, seed=3)
SMALL = DigitsConfig(
    seeds=1,
    clean=60,
    corrupted=10,
    gd_steps=150,
    steps=6,
    k=3,
    batch_size=5,
    rho=1e12,  # so that one dynamics diverges
    sharpness_draws=4,
    dynamics=("gd", "sgd", "gld-top-eigenvector", "gld-constant"),
    seed=2,
)


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {".lock"}


def assert_same_results(one: Run, other: Run, checkpoints: tuple[str, ...]) -> None:
    """To the last bit, NaN included."""
    for name in ("metrics.parquet", "summary.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    for name in checkpoints:
        assert_close(one.tensors(name), other.tensors(name), rtol=0, atol=0, equal_nan=True)


class Fetched(HTMLParser):
    """Addresses that a browser would fetch on opening a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href") and tag != "a"]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def check_report(run: Run, figures: set[str]) -> str:
    assert write_report(run) == run.path / "report.html"
    return check_page(run, figures)


def check_page(run: Run, figures: set[str]) -> str:
    assert {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")} == {
        name for name in files(run.path) if name.startswith("figures")
    }
    page = (run.path / "report.html").read_text(encoding="utf-8")
    addresses = Fetched(page).addresses
    assert len(addresses) >= len(figures)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    sections = headings(page)
    assert (sections[0], sections[-1]) == ("What holds and what does not", "How the claims are judged")
    return page


def recorded(run: Run, **wanted: Any) -> dict[int, float]:
    """Values by step of the rows that have what is wanted."""
    rows = [row for row in run.metrics().to_pylist() if all(row[key] == value for key, value in wanted.items())]
    return {row["step"]: row["value"] for row in rows}
