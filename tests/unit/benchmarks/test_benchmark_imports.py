"""Benchmarks run seldom, in an environment of their own: what they import of the package must exist."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[3] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_what_a_benchmark_imports_of_the_package_exists(path: Path) -> None:
    found = [
        (node.module, name.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "noisescape"
        for name in node.names
    ]
    missing = [(module, name) for module, name in found if not hasattr(importlib.import_module(str(module)), name)]
    assert missing == []
