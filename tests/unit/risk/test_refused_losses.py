"""What is no loss, or couples samples, is refused with the mend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from criteria import CE, CLASSES, C, Shaped, X
from noisescape.risk import EmpiricalRisk


def test_a_class_is_no_loss() -> None:
    with pytest.raises(TypeError, match=r"the loss is the class CrossEntropyLoss, .*pass CrossEntropyLoss\(\)"):
        EmpiricalRisk(Shaped(C), CE, (X, CLASSES))


def test_outputs_that_are_no_tensor_are_named_with_the_loss() -> None:
    with pytest.raises(TypeError, match=r"the model returns tuple, which cross_entropy does not take.*out\[0\]"):
        EmpiricalRisk(Shaped(C, then=lambda out: (out, out)), CE(), (X, CLASSES))


def test_a_loss_around_a_reduced_one_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CE()

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.inner(outputs, targets)

    with pytest.raises(ValueError, match=r"has shape \(\).*reduction='none'"):
        EmpiricalRisk(Shaped(C), Around(), (X, CLASSES))


def test_outputs_broadcast_against_targets_are_refused_even_where_values_agree() -> None:
    model, inputs = torch.nn.Linear(3, 1), torch.randn(6, 3)
    with pytest.warns(UserWarning, match="broadcasting"), pytest.raises(ValueError, match="broadcast against"):
        ns.EmpiricalRisk(model, torch.nn.functional.mse_loss, (inputs, torch.zeros(6)))
