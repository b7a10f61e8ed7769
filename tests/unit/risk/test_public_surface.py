"""What a risk offers: few members, and the names of earlier versions with a warning."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from cases import Case

MOST_MEMBERS = 26


def test_a_risk_has_few_public_members() -> None:
    members = [name for name in dir(ns.EmpiricalRisk) if not name.startswith("_")]
    assert len(members) <= MOST_MEMBERS, members


@pytest.mark.parametrize(
    ("old", "new"),
    [("weighted_gradient", "vjp"), ("directional_derivatives", "jvp"), ("hessian_product", "hvp")],
)
def test_a_product_by_its_earlier_name_is_the_same_with_a_warning(old: str, new: str, mlp: Case) -> None:
    risk, theta = mlp.risk(), mlp.theta
    along = torch.ones(risk.sample_count).to(theta) if new == "vjp" else theta
    with pytest.warns(DeprecationWarning, match=rf"risk\.{old} is now risk\.{new}"):
        found = getattr(risk, old)(theta, along)
    assert torch.equal(found, getattr(risk, new)(theta, along))


def test_a_name_that_never_was_is_no_attribute(mlp: Case) -> None:
    with pytest.raises(AttributeError, match="no attribute 'hesian'"):
        mlp.risk().hesian(mlp.theta)


def test_an_attribute_error_inside_is_not_mistaken_for_a_missing_attribute(mlp: Case) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(inputs) + self.nothing

    with pytest.raises(AttributeError, match="nothing"):
        ns.EmpiricalRisk(Broken(), torch.nn.functional.mse_loss, (torch.ones(3, 2), torch.ones(3, 1)))
