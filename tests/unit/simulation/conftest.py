"""Where a run is kept."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file in a folder of its own."""
    folder = tmp_path / "sim"
    folder.mkdir()
    return folder / "kept.safetensors"
