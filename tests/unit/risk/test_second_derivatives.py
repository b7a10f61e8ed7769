"""Second derivatives that are none are refused; finite differences of the gradient stand in, with their error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, normal
from internals import decided
from networks import classifier_risk
from noisescape.risk import DifferenceHessian
from noisescape.risk.agreement import second_derivative_error


class _Detached(torch.autograd.Function):
    """x³ whose backward pass hides from autograd what it depends on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * 3 * ctx.x**2


class Hiding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(_Detached.apply(self.a(x)))


class Rounded(Hiding):
    """A straight-through gradient: the loss is piecewise constant in the first layer."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(hidden + (torch.round(4 * hidden) / 4 - hidden).detach())


@pytest.mark.parametrize("kind", [Hiding, Rounded])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_second_derivatives_that_are_none_are_refused(kind: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    risk = classifier_risk(kind(), normal(20, 4, seed=1), dtype)
    theta = risk.parameters()
    for call in (
        lambda: risk.hessian(theta) @ theta,
        lambda: risk.hvp(theta, theta),
        lambda: ns.measure(risk, theta, batch_size=4),
    ):
        with pytest.raises(ValueError, match=r"not the derivatives of its gradient.*DifferenceHessian"):
            call()
    assert risk.gradient(theta).shape == theta.shape


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Hardswish, nn.Softplus])
def test_kinks_are_no_reason_to_refuse(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 3))
    risk = classifier_risk(layers, normal(50, 4, seed=1), torch.float32)
    assert decided(risk, "second_derivative_error") < 1e-3


@pytest.mark.parametrize(("apart", "curvature"), [(1e-6, 1.0), (1e-8, 1.0), (1e-10, 100.0), (1e-11, 100.0)])
def test_kinks_close_together_are_no_reason_either(apart: float, curvature: float) -> None:
    """In VGG-11 at its full width, on some batches, steps of 10⁻⁸ always cross one; in a ResNet-18 of 10⁻¹⁰."""
    offsets = apart * (torch.arange(-2_000, 2_000, dtype=F64) + 0.5)

    def gradient(theta: Tensor) -> Tensor:  # 1 at 0, and a jump of 1 at every offset of Σ_i θ_i
        return curvature * theta + 1 + float((theta.sum() > offsets).sum()) - 2_000

    theta = torch.zeros(3, dtype=F64)
    assert second_derivative_error(gradient, lambda _, v: curvature * v, theta, 1e-3) < 1e-3
    assert second_derivative_error(gradient, lambda _, v: 2 * curvature * v, theta, 1e-3) > 0.4


@pytest.mark.parametrize("given", [0.0, 5e-3])
def test_rounding_in_the_shortest_steps_does_not_pass_for_agreement(given: float) -> None:
    """At 10⁻¹² of θ what rounding may be is larger than all of this curvature."""
    theta = torch.zeros(3, dtype=F64)
    error = second_derivative_error(lambda point: 1e-2 * point + 1, lambda _, v: given * v, theta, 1e-3)
    assert error > 0.4


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_finite_differences_state_their_error(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    risk = classifier_risk(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), normal(30, 4, seed=1), dtype)
    theta = risk.parameters()
    exact, found = risk.hessian(theta), DifferenceHessian(risk, theta)
    block = normal(len(theta), 20, seed=9).to(dtype)
    errors = (found @ block - exact @ block).norm(dim=0) / (exact @ block).norm(dim=0)
    assert float(errors.median()) <= 2 * found.relative_error
    assert found.relative_error < (1e-8 if dtype == F64 else 2e-2)
    assert torch.equal(found @ torch.zeros_like(theta), torch.zeros_like(theta))


def test_finite_differences_of_a_model_without_second_derivatives() -> None:
    """H of x³ by its formula, against differences of the right gradient; and measure takes them."""
    torch.manual_seed(0)
    inputs = normal(30, 4, seed=1)
    risk = classifier_risk(Hiding(), inputs)
    theta = risk.parameters()

    class Open(Hiding):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) ** 3)

    twin = Open()
    twin.load_state_dict(risk.state_dict(theta))
    exact = classifier_risk(twin, inputs).hessian(theta).dense()
    found = DifferenceHessian(risk, theta)
    torch.testing.assert_close(found.dense(), exact, rtol=1e-5, atol=1e-7)
    measured = ns.measure(risk, theta, batch_size=4, k=3, hessian=found)
    assert abs(measured.trace_h.value - float(exact.trace())) <= 5 * measured.trace_h.stderr + 1e-5


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_finite_differences_refuse_a_step_that_is_none(step: float) -> None:
    risk = classifier_risk(Hiding(), normal(5, 4, seed=1))
    with pytest.raises(ValueError, match="step must be positive"):
        DifferenceHessian(risk, risk.parameters(), step=step)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * ctx.saved_tensors[0].cos()


def test_an_operation_differentiable_once_is_named_with_the_mend() -> None:
    class Kernel(Hiding):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(_Once.apply(self.a(x)))

    torch.manual_seed(0)
    risk = classifier_risk(Kernel(), normal(10, 4, seed=1))
    theta = risk.parameters()
    # PyTorch itself says nothing where the derivative is with respect to chosen inputs
    with pytest.raises(ValueError, match=r"not the derivatives of its gradient.*DifferenceHessian"):
        risk.hessian(theta) @ theta
    assert DifferenceHessian(risk, theta).relative_error < 1e-6
    assert risk.noise_covariance(theta, 2).trace() > 0
