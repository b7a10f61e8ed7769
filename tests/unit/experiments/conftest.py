"""Fixtures of the image sets; the builders are in ``tiny_images.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisescape.experiments import images
from noisescape.experiments.images import IMAGE_SETS
from tiny_images import COLOUR, TINY, made, write


@pytest.fixture
def tiny_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small data sets are known, no directory is the default, and nothing of the hub is remembered."""
    monkeypatch.setitem(IMAGE_SETS, "tiny", TINY)
    monkeypatch.setitem(IMAGE_SETS, "colour", COLOUR)
    monkeypatch.delenv("NOISESCAPE_DATA", raising=False)
    images._from_hub.cache_clear()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A data directory with all of ``tiny``."""
    for split in ("train", "test"):
        write(tmp_path / "tiny" / f"{split}.parquet", made(TINY, split)[1])
    return tmp_path


@pytest.fixture
def colour(tmp_path: Path) -> Path:
    """A data directory with the first 200 training rows of ``colour`` and no test split."""
    write(tmp_path / "colour" / "train_prefix.parquet", made(COLOUR, "train", 200)[1])
    return tmp_path
