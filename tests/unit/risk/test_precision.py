"""Single, double and half precision give the same figures, whatever autocast is on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, F64, Case, classes, close, normal
from networks import classifier_risk
from noisescape.risk import EmpiricalRisk


@pytest.mark.parametrize("name", ["lstm", "attention", "conv"])
def test_single_precision_agrees_with_double(name: str) -> None:
    case = CASES[name]
    risk, theta = case.risk(torch.float32), case.theta.float()
    direction = normal(len(theta), seed=3)
    close(risk.gradient(theta).double(), case.gradients().mean(0), rtol=2e-5)
    close(risk.per_sample_gradients(theta).double(), case.gradients(), rtol=2e-5)
    close(risk.hvp(theta, direction.float()).double(), case.hessian() @ direction, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_to_double_equals_a_risk_built_in_double(name: str) -> None:
    case = CASES[name]
    single = case.risk(torch.float32)
    risk = single.to(F64)
    assert risk.dtype == F64
    assert single.dtype == torch.float32
    theta = risk.parameters()
    assert torch.equal(theta, single.parameters().double())
    # the data were rounded to single precision: compare with a risk that was, too
    rounded = torch.utils._pytree.tree_map(lambda t: t.float().double() if t.is_floating_point() else t, case.data)
    double = EmpiricalRisk(case.model(torch.float32).double(), case.loss, rounded)
    close(risk.gradient(theta), double.gradient(theta))


def test_to_double_converts_class_weights_of_the_loss(mlp: Case) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5])
    data = (mlp.inputs.float(), mlp.targets)
    risk = EmpiricalRisk(mlp.model(torch.float32), nn.CrossEntropyLoss(weight=weight), data).to(F64)
    weights = weight[mlp.targets].double()
    close(risk.losses(mlp.theta), mlp.losses(mlp.theta).detach() * weights / weights.mean(), rtol=1e-6)


CE = nn.functional.cross_entropy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    inputs, targets = normal(30, 4, seed=1).to(dtype), classes(30, of=3, seed=2)
    risk = ns.EmpiricalRisk(model, CE, (inputs, targets))
    theta = risk.parameters()
    single = risk.to(torch.float32)
    assert risk.hessian(theta).dtype == torch.float32
    torch.testing.assert_close(risk.hessian(theta).dense(), single.hessian(theta.float()).dense())
    torch.testing.assert_close(
        risk.noise_covariance(theta, 4).trace(), single.noise_covariance(theta.float(), 4).trace()
    )
    ours, theirs = (ns.measure(r, t, batch_size=4, k=3) for r, t in ((risk, theta), (single, theta.float())))
    assert ours.to_dict() == theirs.to_dict()


def test_an_ambient_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    risk = classifier_risk(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), normal(30, 4, seed=1), torch.float32
    )
    theta = risk.parameters()
    block = normal(len(theta), 3, seed=4).float()

    def figures() -> list[Tensor]:
        sigma = risk.noise_covariance(theta, 4)
        return [
            risk.losses(theta), risk.gradient(theta), risk.per_sample_gradients(theta), risk.hessian(theta) @ block,
            risk.gauss_newton(theta) @ block, sigma @ block, sigma.diagonal(),
            risk.jvp(theta, block),
        ]  # fmt: skip

    wanted = figures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = figures()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
