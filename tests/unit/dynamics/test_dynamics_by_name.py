"""Dynamics by name, for command lines and configuration files."""

from __future__ import annotations

import pytest

import noisescape as ns


def test_lookup_by_name_gives_what_was_asked_for():
    assert ns.dynamics_by_name("gld-leading", batch_size=5, k=3, rho=1.0) == ns.GLDLeading(5, k=3)
    with pytest.raises(ValueError, match="did you mean gld-diagonal"):
        ns.dynamics_by_name("gld-diagnal", batch_size=5)
    with pytest.raises(ValueError, match="'sgd' needs batch_size"):
        ns.dynamics_by_name("sgd")
