"""Every kind of model: derivatives and covariances against dense autograd in float64, and no TF32 in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import CASES, close, normal
from noisescape.linops.precision import at_full_precision
from noisescape.risk import EmpiricalRisk

each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_derivatives(name: str, device: str) -> None:
    case = CASES[name]
    risk, theta = case.risk(device=device), case.theta.to(device)
    directions, weights = normal(len(case.theta), 3, seed=8), normal(case.count, 3, seed=9)
    found = {
        "losses": (risk.losses(theta), case.losses(case.theta).detach()),
        "gradient": (risk.gradient(theta), case.gradients().mean(0)),
        "vjp": (risk.vjp(theta, weights.to(device)), case.gradients().T @ weights),
        "jvp": (risk.jvp(theta, directions.to(device)), case.gradients() @ directions),
        "rows": (risk.per_sample_gradients(theta), case.gradients()),
        "hvp": (risk.hvp(theta, directions[:, 0].to(device)), case.hessian() @ directions[:, 0]),
        "hvps": (risk.hvp(theta, directions.to(device)), case.hessian() @ directions),
        "ggnvp": (risk.gauss_newton(theta) @ directions.to(device), case.gauss_newton() @ directions),
    }
    for what, (there, wanted) in found.items():
        assert there.device.type == device, what
        close(there.cpu(), wanted, rtol=1e-7)


@each_case
def test_covariance_and_its_norms(name: str, device: str) -> None:
    case = CASES[name]
    risk, theta = case.risk(device=device), case.theta.to(device)
    sigma = risk.noise_covariance(theta, 3)
    dense = case.covariance() / 3
    close(sigma.dense().cpu(), dense, rtol=1e-7)
    close(sigma.diagonal().cpu(), dense.diagonal(), rtol=1e-7)
    close(torch.as_tensor(sigma.trace()).cpu(), dense.trace(), rtol=1e-7)
    pairs = sigma.leading(2)
    assert pairs is not None
    close(pairs[0].cpu(), torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-6)


@each_case
def test_replicas(name: str, device: str) -> None:
    case = CASES[name]
    risk = case.risk(device=device)
    both = torch.stack([case.theta, risk.parameters().cpu()]).to(device)
    indices = torch.tensor([[0, 3, 3], [1, 2, 5]], device=device)
    one_by_one = [risk.minibatch_gradient(theta, row) for theta, row in zip(both, indices, strict=True)]
    close(risk.minibatch_gradient(both, indices).cpu(), torch.stack(one_by_one).cpu(), rtol=1e-7)
    close(risk.gradient(both)[0].cpu(), case.gradients().mean(0), rtol=1e-7)


def test_float32_is_not_rounded_to_tf32(device: str) -> None:
    """TF32 has ten bits of mantissa: relative errors of 10⁻³; float32 has 23."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 10))
    inputs, targets = normal(64, 16, 8, 8, dtype=torch.float32), torch.arange(64) % 10
    exact = EmpiricalRisk(model.double(), nn.functional.cross_entropy, (inputs.double(), targets))
    theta, direction = exact.parameters(), normal(exact.dimension, seed=1)
    wanted = exact.gradient(theta), exact.hvp(theta, direction)
    single = EmpiricalRisk(
        model.float().to(device), nn.functional.cross_entropy, (inputs.to(device), targets.to(device))
    )
    torch.backends.cudnn.allow_tf32 = True
    point, along = theta.float().to(device), direction.float().to(device)
    found = single.gradient(point), single.hvp(point, along)
    for value, reference in zip(found, wanted, strict=True):
        assert float((value.cpu().double() - reference).norm() / reference.norm()) < 1e-5
    with at_full_precision():
        left = torch.randn(256, 256, device=device)
        assert float((left @ left - (left.double() @ left.double())).norm() / (left @ left).norm()) < 1e-5
