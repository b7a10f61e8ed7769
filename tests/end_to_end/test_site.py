"""The documentation site: it builds, names everything public, its Python runs, it opens offline in a browser."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import noisescape as ns
from browser import open_browser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("measurement", "risk", "linops", "dynamics", "simulation", "training", "theory", "distributed")
SHOWING_CODE = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if page.parent != DOCS / "decisions" and "```python" in page.read_text()
]
RUN_ELSEWHERE = {"monitor.md", "lab.md", "many-machines.md", "scale.md"}
"""Pages whose code needs things that other tests bring."""
LOOKED_AT = ("index.html", "how-to/measure.html", "explanation/glossary.html", "results/index.html",
             "reference/measurement.html", "performance.html", "explanation/gallery.html",
             "notebooks/escape.html", "notebooks/measure.html", "notebooks/training.html")  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of mkdocs and its plugins
def test_every_public_name_has_a_place_in_the_reference(site: Path) -> None:
    shown = set()
    for page in (site / "reference").glob("*.html"):
        shown |= {found.rpartition(".")[2] for found in re.findall(r'id="(noisescape\.[\w.]+)"', page.read_text())}
    names = {*ns.__all__} - {"errors", *PACKAGES}
    for package in PACKAGES:
        names |= {*importlib.import_module(f"noisescape.{package}").__all__}
    modules = {"recorders", "landscapes", "basin"}
    assert names - modules <= shown, sorted(names - modules - shown)


@pytest.mark.filterwarnings("ignore")
def test_every_command_and_option_is_there(site: Path) -> None:
    page = (site / "reference/command-line.html").read_text()
    for command in ("measure", "reproduce", "matched-loss", "lab", "claims", "watch", "batch-size", "report"):
        assert command in page
    for option in ("--max-products", "--resume", "--preset", "--data-dir"):
        assert option in page


def test_every_decision_is_listed() -> None:
    listed = (DOCS / "decisions/README.md").read_text()
    for decision in (DOCS / "decisions").glob("0*.md"):
        assert f"({decision.name})" in listed


def test_every_page_is_reached() -> None:
    menu = re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text())
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    pages |= {str(page.relative_to(DOCS).with_suffix(".md")) for page in DOCS.rglob("*.ipynb")}
    decisions = {page for page in pages if page.startswith("decisions/0")}
    assert pages - decisions - {"results/begun/README.md"} == {*menu}


@pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")
@pytest.mark.parametrize(
    "page", [page for page in SHOWING_CODE if page.name not in RUN_ELSEWHERE], ids=lambda page: page.stem
)
def test_python_on_a_page_runs_as_written(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # pictures go there
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    module = types.ModuleType("page")  # a dataclass looks for its own
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile("\n".join(blocks), page.name, "exec"), module.__dict__)
    assert capsys.readouterr().out.strip()


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as started:
        yield started


@pytest.mark.filterwarnings("ignore")
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


def test_the_menu_is_plain_yaml() -> None:
    loaded = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert loaded["strict"] is True
    assert loaded["theme"]["font"] is False, "fonts would come from the network"
