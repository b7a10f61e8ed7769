"""A loss that reads the model's parameters: differentiated as in training, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, classes, normal
from internals import decided
from networks import X, Y, flat_gradient, network

CE = nn.functional.cross_entropy
LOOKS: dict[str, Callable[[nn.Parameter], bool]] = {
    "all": lambda p: True,
    "that require a gradient": lambda p: p.requires_grad,
    "that are Parameters": lambda p: isinstance(p, nn.Parameter),
    "of a matrix": lambda p: p.ndim == 2,
}


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize("replicas", [False, True])
def test_weight_decay_in_the_loss_meets_parameters_as_in_training(name: str, replicas: bool) -> None:
    model = network()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        decay = sum(p.square().sum() for p in model.parameters() if LOOKS[name](p))
        return CE(outputs, targets, reduction="none") + 0.1 * decay

    wanted = loss(model(X), Y)
    gradient = flat_gradient(model, wanted.mean())
    risk = ns.EmpiricalRisk(model, loss, (X, Y))
    theta = risk.parameters()
    point = torch.stack([theta, theta]) if replicas else theta
    torch.testing.assert_close(risk.losses(point), wanted.detach().expand(*point.shape[:-1], -1))
    torch.testing.assert_close(risk.gradient(point), gradient.expand(point.shape))
    if not replicas:
        rows = risk.per_sample_gradients(theta)
        torch.testing.assert_close(rows.mean(0), gradient)
        torch.testing.assert_close(risk.jvp(theta, theta), rows @ theta)


@pytest.mark.parametrize("strength", [1e-7, 1e-3])
def test_a_weight_read_outside_its_layer_counts_however_little(strength: float) -> None:
    """Whether factors are kept of a layer's gradients is a question of structure, not of size."""
    model = network().float()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return CE(outputs, targets, reduction="none") + strength * sum(p.square().sum() for p in model.parameters())

    risk = ns.EmpiricalRisk(model, loss, (X.float(), Y))
    assert decided(risk, "gradient_width") == risk.dimension
    far = 100 * risk.parameters()  # where the penalty is no longer small
    torch.testing.assert_close(risk.per_sample_gradients(far).mean(0), risk.gradient(far), rtol=1e-3, atol=1e-5)


def test_captured_values_of_parameters_are_refused() -> None:
    model = network()
    kept = list(model.parameters())
    with pytest.raises(ValueError, match="references captured earlier"):
        ns.EmpiricalRisk(
            model, lambda o, t: CE(o, t, reduction="none") + 0.1 * sum(p.data.square().sum() for p in kept), (X, Y)
        )
    assert all(p.requires_grad for p in kept)


def test_a_loss_that_reads_the_parameters_has_a_hessian_but_no_gauss_newton_matrix() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)
    inputs, targets = normal(12, 4, seed=1), classes(12, of=3, seed=2)

    def decayed(outputs: Tensor, targets: Tensor) -> Tensor:
        return CE(outputs, targets, reduction="none") + 0.05 * sum(p.square().sum() for p in model.parameters())

    plain = ns.EmpiricalRisk(model, CE, (inputs, targets))
    risk = ns.EmpiricalRisk(model, decayed, (inputs, targets))
    theta = risk.parameters() + 0.1 * normal(risk.dimension, seed=3)
    torch.testing.assert_close(risk.gradient(theta), plain.gradient(theta) + 0.1 * theta)
    torch.testing.assert_close(
        risk.hessian(theta).dense(), plain.hessian(theta).dense() + 0.1 * torch.eye(len(theta), dtype=F64)
    )
    assert not decided(risk, "gauss_newton_forms")
    with pytest.raises(ValueError, match="reads the model's parameters itself"):
        risk.gauss_newton(theta) @ theta
