"""The documentation site, built once for all workers of a test run: that runs the notebooks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, by default built now; what is wrong with it, or with a notebook of it, is an error."""
    if built := os.environ.get("NOISESCAPE_SITE"):
        return ROOT / built
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers of one run share
    where, whole = folder / "site", folder / "site.built"
    with FileLock(folder / "site.lock"), pytest.MonkeyPatch.context() as patch:
        if not whole.exists():
            patch.chdir(ROOT)
            patch.setenv("NO_MKDOCS_2_WARNING", "1")
            build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(where), strict=True))
            whole.touch()
    return where
