"""A faster way to a derivative is used only where it gives what reverse mode gives, whatever the sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, classes, normal

CE = nn.functional.cross_entropy


class _WrongTangent(torch.autograd.Function):
    """tanh whose forward-mode derivative is off by a share where an input is marked."""

    share = 0.3

    @staticmethod
    def forward(x: Tensor, marked: Tensor) -> Tensor:
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.save_for_forward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        output, _ = ctx.saved_tensors
        return upstream * (1 - output**2), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        output, marked = ctx.saved_tensors
        return tangent * (1 - output**2) * (1 + _WrongTangent.share * marked)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, marked: Tensor) -> Any:
        if dims[0] is not None:
            marked = marked.movedim(dims[1], 0) if dims[1] is not None else marked
            return _WrongTangent.apply(x.movedim(dims[0], 0), marked), 0
        return _WrongTangent.apply(x, marked), None


class Marked(nn.Module):
    """Wrong in forward mode for samples whose first entry is 0, as padding is in an embedding."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        marked = (x[:, :1] == 0).to(x)
        return self.b(_WrongTangent.apply(self.a(x), marked.expand(-1, self.a.out_features)))


def _risk(model: nn.Module, inputs: Tensor, dtype: torch.dtype = F64) -> ns.EmpiricalRisk:
    return ns.EmpiricalRisk(model.to(dtype), CE, (inputs.to(dtype), classes(len(inputs), of=3, seed=2)))


def _oracle(risk: ns.EmpiricalRisk, block: Tensor) -> tuple[Tensor, Tensor]:
    """Gv and Hv by reverse mode alone, on the module itself."""
    model, inputs, targets = risk._function.model, risk._samples.inputs, risk._samples.targets
    parameters = list(model.parameters())

    def flat(value: Tensor, graph: bool = False) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, create_graph=graph)])

    losses = [CE(model(inputs[n : n + 1]), targets[n : n + 1]) for n in range(len(inputs))]
    rows = torch.stack([flat(loss, graph=True) for loss in losses])
    bent = torch.stack([flat((rows.mean(0) * v).sum(), graph=True) for v in block.T], dim=1)
    return rows.detach() @ block, bent.detach()


@pytest.mark.parametrize("place", [0, 7, 29])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_derivative_wrong_for_one_sample_of_thirty_is_not_used(place: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = normal(30, 4, seed=1)
    inputs[place, 0] = 0.0
    risk = _risk(Marked(), inputs, dtype)
    block = normal(risk.dimension, 3, seed=5).to(dtype)
    derivatives, products = _oracle(risk, block)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    theta = risk.parameters()
    torch.testing.assert_close(risk.directional_derivatives(theta, block), derivatives, **tolerance)
    torch.testing.assert_close(risk.hessian(theta) @ block, products, **tolerance)
    assert not risk.forward_mode
    assert not risk.pushes_gradients


def test_a_wrong_tangent_shows_in_many_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number along a random direction would be drowned: its error falls as 1/√D."""
    monkeypatch.setattr(_WrongTangent, "share", 0.3)
    torch.manual_seed(0)
    inputs = normal(20, 4, seed=1)
    inputs[3, 0] = 0.0
    wide = Marked(width=30_000)
    risk = _risk(wide, inputs, torch.float32)
    assert risk.dimension > 200_000
    assert not risk.forward_mode


def test_a_tangent_that_is_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_WrongTangent, "share", 0.0)
    torch.manual_seed(0)
    inputs = normal(20, 4, seed=1)
    inputs[3, 0] = 0.0
    for dtype in (F64, torch.float32):
        assert _risk(Marked(), inputs, dtype).forward_mode


def test_zeros_agree_with_nothing() -> None:
    """A model that starts at zero derivative everywhere is tried away from there."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Marked()
            self.gate = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.gate * self.inner(x)

    torch.manual_seed(0)
    inputs = normal(20, 4, seed=1)
    inputs[:, 0] = 0.0
    risk = _risk(Gated(), inputs)
    assert not risk.forward_mode
    constant = ns.EmpiricalRisk.from_losses(
        lambda w: w[:1] * 0 + torch.ones(4, dtype=F64), torch.zeros(3, dtype=F64)
    )
    assert not constant.forward_mode


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
    risk = _risk(kind(), normal(20, 4, seed=1), dtype)
    theta = risk.parameters()
    for call in (
        lambda: risk.hessian(theta) @ theta,
        lambda: risk.hessian_product(theta, theta),
        lambda: ns.measure(risk, theta, batch_size=4),
    ):
        with pytest.raises(ValueError, match=r"not the derivatives of its gradient.*finite_difference_hessian"):
            call()
    assert risk.gradient(theta).shape == theta.shape


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Hardswish, nn.Softplus])
def test_kinks_are_no_reason_to_refuse(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 3))
    risk = _risk(layers, normal(50, 4, seed=1), torch.float32)
    assert risk.second_derivative_error < 1e-3


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_finite_differences_state_their_error(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    risk = _risk(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), normal(30, 4, seed=1), dtype)
    theta = risk.parameters()
    exact, found = risk.hessian(theta), risk.finite_difference_hessian(theta)
    block = normal(len(theta), 20, seed=9).to(dtype)
    errors = (found @ block - exact @ block).norm(dim=0) / (exact @ block).norm(dim=0)
    assert float(errors.median()) <= 2 * found.relative_error
    assert found.relative_error < (1e-8 if dtype == F64 else 2e-2)
    assert torch.equal(found @ torch.zeros_like(theta), torch.zeros_like(theta))


def test_finite_differences_of_a_model_without_second_derivatives() -> None:
    """H of x³ by its formula, against differences of the right gradient; and measure takes them."""
    torch.manual_seed(0)
    inputs = normal(30, 4, seed=1)
    risk = _risk(Hiding(), inputs)
    theta = risk.parameters()

    class Open(Hiding):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) ** 3)

    twin = Open()
    twin.load_state_dict(risk.state_dict(theta))
    exact = _risk(twin, inputs).hessian(theta).dense()
    found = risk.finite_difference_hessian(theta)
    torch.testing.assert_close(found.dense(), exact, rtol=1e-5, atol=1e-7)
    measured = ns.measure(risk, theta, batch_size=4, k=3, hessian=found)
    assert abs(measured.trace_h.value - float(exact.trace())) <= 5 * measured.trace_h.stderr + 1e-5


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_finite_differences_refuse_a_step_that_is_none(step: float) -> None:
    risk = _risk(Hiding(), normal(5, 4, seed=1))
    with pytest.raises(ValueError, match="step must be positive"):
        risk.finite_difference_hessian(risk.parameters(), step=step)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * ctx.saved_tensors[0].cos()


def test_an_operation_differentiable_once_is_told_with_the_mend() -> None:
    class Kernel(Hiding):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(_Once.apply(self.a(x)))

    torch.manual_seed(0)
    risk = _risk(Kernel(), normal(10, 4, seed=1))
    theta = risk.parameters()
    # PyTorch itself says nothing where the derivative is with respect to chosen inputs
    with pytest.raises(ValueError, match=r"not the derivatives of its gradient.*finite_difference_hessian"):
        risk.hessian(theta) @ theta
    assert risk.finite_difference_hessian(theta).relative_error < 1e-6
    assert risk.noise_covariance(theta, 2).trace() > 0


def test_coupling_that_only_a_full_chunk_shows_is_refused_when_it_is_met() -> None:
    """Capacity beyond the samples tried: the first evaluation of a whole chunk is held against its parts."""

    class Capacity(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            kept = (torch.arange(len(x)) < 100).to(x)[:, None]
            return super().forward(x) * kept

    torch.manual_seed(0)
    risk = _risk(Capacity(4, 3), normal(300, 4, seed=1))
    for call in (risk.losses, risk.gradient):
        with pytest.raises(ns.BatchCouplingError, match="between a batch of 300 and the same in two parts"):
            call(risk.parameters())


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
    assert not risk.pushes_outputs
    with pytest.raises(ValueError, match="reads the model's parameters itself"):
        risk.gauss_newton(theta) @ theta


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
    risk = _risk(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), normal(30, 4, seed=1), torch.float32)
    theta = risk.parameters()
    block = normal(len(theta), 3, seed=4).float()

    def figures() -> list[Tensor]:
        sigma = risk.noise_covariance(theta, 4)
        return [
            risk.losses(theta), risk.gradient(theta), risk.per_sample_gradients(theta), risk.hessian(theta) @ block,
            risk.gauss_newton(theta) @ block, sigma @ block, sigma.diagonal(),
            risk.directional_derivatives(theta, block),
        ]  # fmt: skip

    wanted = figures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = figures()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
