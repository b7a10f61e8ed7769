"""The pages of the documentation: each is reached from the menu, and its Python runs."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHOWING_CODE = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if page.parent != DOCS / "decisions" and "```python" in page.read_text()
]
RUN_ELSEWHERE = {"monitor.md", "lab.md", "many-machines.md", "scale.md"}
"""Pages whose code needs things that other tests bring."""


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


def test_the_menu_is_plain_yaml() -> None:
    loaded = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert loaded["strict"] is True
    assert loaded["theme"]["font"] is False, "fonts would come from the network"
