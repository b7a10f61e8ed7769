"""The problems that dynamics are tried on."""

from __future__ import annotations

import pytest
import torch

import dynamics_cases
import noisescape as ns


@pytest.fixture(scope="module")
def regression():
    return dynamics_cases.regression()


@pytest.fixture(scope="module")
def theta():
    return dynamics_cases.THETA


@pytest.fixture(scope="module")
def network():
    """D = 139: beyond what is solved densely, with enough samples for a sketch of three directions."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(5, 15), torch.nn.Tanh(), torch.nn.Linear(15, 3), torch.nn.Tanh())
    data = (torch.randn(120, 5, dtype=torch.float64), torch.randint(0, 3, (120,)))
    return ns.EmpiricalRisk(model.double(), torch.nn.functional.cross_entropy, data)
