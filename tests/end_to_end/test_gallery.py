"""The gallery: small pictures, each with the command that draws it again."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs/site/gallery.py"
IMAGES = ROOT / "docs/images"
DRAWN = sorted(path.stem for path in IMAGES.glob("gallery-*.png"))


@pytest.fixture(scope="module")
def gallery() -> dict[str, object]:
    """The script's names."""
    return runpy.run_path(str(SCRIPT))


def test_every_picture_of_the_script_is_kept_small_and_shown_with_its_command(gallery) -> None:
    assert sorted(gallery["PICTURES"]) == DRAWN
    page = (ROOT / "docs/explanation/gallery.md").read_text()
    commands = " ".join(re.findall(r"`python docs/site/gallery\.py ([\w -]+)`", page))
    assert sorted(commands.split()) == DRAWN
    assert sorted(re.findall(r"!\[[^\]]{20,}\]\(\.\./images/(gallery-[\w-]+)\.png\)", page)) == DRAWN
    for name in DRAWN:
        assert (IMAGES / f"{name}.png").stat().st_size < 80_000


@pytest.mark.slow
def test_the_script_draws_them_all_at_the_size_that_is_kept(gallery, tmp_path: Path) -> None:
    for name in DRAWN:
        with Image.open(gallery["draw"](name, tmp_path)) as anew, Image.open(IMAGES / f"{name}.png") as kept:
            assert anew.size == kept.size
            colours = anew.convert("RGB").getcolors(anew.width * anew.height)
        assert colours is not None
        assert len(colours) > 20
