"""The built site names everything public, and opens offline in a browser."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import noisescape as ns

PACKAGES = ("measurement", "risk", "linops", "dynamics", "simulation", "training", "theory", "distributed")
LOOKED_AT = ("index.html", "how-to/measure.html", "explanation/glossary.html", "results/index.html",
             "reference/measurement.html", "performance.html", "explanation/gallery.html",
             "notebooks/escape.html", "notebooks/measure.html", "notebooks/training.html")  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of mkdocs and its plugins


def test_every_public_name_has_a_place_in_the_reference(site: Path) -> None:
    shown = set()
    for page in (site / "reference").glob("*.html"):
        shown |= {found.rpartition(".")[2] for found in re.findall(r'id="(noisescape\.[\w.]+)"', page.read_text())}
    names = {*ns.__all__} - {"errors", *PACKAGES}
    for package in PACKAGES:
        names |= {*importlib.import_module(f"noisescape.{package}").__all__}
    modules = {"recorders", "landscapes", "basin"}
    assert names - modules <= shown, sorted(names - modules - shown)


def test_every_command_and_option_is_there(site: Path) -> None:
    page = (site / "reference/command-line.html").read_text()
    for command in ("measure", "reproduce", "matched-loss", "lab", "claims", "watch", "batch-size", "report"):
        assert command in page
    for option in ("--max-products", "--resume", "--preset", "--data-dir"):
        assert option in page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", LOOKED_AT)
def test_pages_open_offline_fit_and_say_nothing_on_the_console(
    page: str, width: int, site: Path, browser: Any
) -> None:
    said: list[str] = []
    asked: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((site / page).as_uri())
    tab.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert said == []
    wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{page} is {wide} pixels wider than a screen of {width}"
    tab.close()
