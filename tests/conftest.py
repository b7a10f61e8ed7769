"""Fixtures shared by the tests; the builders are in ``cases.py``."""

from __future__ import annotations

import pytest

from cases import CASES, Case, bowl_risk
from noisescape.linops.probing import Exact
from noisescape.risk import EmpiricalRisk


@pytest.fixture
def mlp() -> Case:
    """A tiny classifier, N = 11, D = 31."""
    return CASES["mlp cross-entropy"]


@pytest.fixture
def conv() -> Case:
    """A tiny conv net, N = 9, D = 47."""
    return CASES["conv"]


@pytest.fixture(params=["of all samples", "of a sample"])
def bowl_risks(request: pytest.FixtureRequest) -> EmpiricalRisk:
    """The same closed form, given by the vector of losses and by the loss of one sample."""
    return bowl_risk(request.param)


@pytest.fixture
def by_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes whatever the exact value costs, so that what holds of them is seen on small matrices too."""
    monkeypatch.setattr(Exact, "is_cheaper", lambda self, planned, left: False)
