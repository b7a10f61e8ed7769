"""Forward mode is used only where it gives what reverse mode gives, whatever the sample."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from benchmarks.measure import resnet18
from cases import CASES, F64, classes, close, normal
from internals import decided
from networks import classifier_risk
from noisescape.risk import EmpiricalRisk

CE = nn.functional.cross_entropy


class _WrongTangent(torch.autograd.Function):
    """tanh whose forward-mode derivative is off by a share where an input is marked."""

    share: ClassVar[dict[torch.dtype, float]] = {torch.float32: 0.3, F64: 0.3}

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
        return tangent * (1 - output**2) * (1 + _WrongTangent.share[tangent.dtype] * marked)

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


def by_reverse_mode(model: nn.Module, inputs: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Gv and Hv by reverse mode alone, on the module itself."""
    targets = classes(len(inputs), of=3, seed=2)
    parameters = list(model.parameters())

    def flat(value: Tensor, graph: bool = False) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, create_graph=graph)])

    losses = [CE(model(inputs[n : n + 1]), targets[n : n + 1]) for n in range(len(inputs))]
    rows = torch.stack([flat(loss, graph=True) for loss in losses])
    products = torch.stack([flat((rows.mean(0) * v).sum(), graph=True) for v in block.T], dim=1)
    return rows.detach() @ block, products.detach()


@pytest.mark.parametrize("place", [0, 7, 29])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_derivative_wrong_for_one_sample_of_thirty_is_not_used(place: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = normal(30, 4, seed=1)
    inputs[place, 0] = 0.0
    model = Marked()
    risk = classifier_risk(model, inputs, dtype)
    block = normal(risk.dimension, 3, seed=5).to(dtype)
    derivatives, products = by_reverse_mode(model, inputs.to(dtype), block)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    theta = risk.parameters()
    torch.testing.assert_close(risk.jvp(theta, block), derivatives, **tolerance)
    torch.testing.assert_close(risk.hessian(theta) @ block, products, **tolerance)
    assert not decided(risk, "forward_mode")
    assert not decided(risk, "forward_over_reverse")


def test_a_wrong_tangent_shows_in_many_dimensions() -> None:
    """One number along a random direction would be drowned: its error falls as 1/√D."""
    torch.manual_seed(0)
    inputs = normal(20, 4, seed=1)
    inputs[3, 0] = 0.0
    wide = Marked(width=30_000)
    risk = classifier_risk(wide, inputs, torch.float32)
    assert risk.dimension > 200_000
    assert not decided(risk, "forward_mode")


def test_a_tangent_that_is_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_WrongTangent, "share", {torch.float32: 0.0, F64: 0.0})
    torch.manual_seed(0)
    inputs = normal(20, 4, seed=1)
    inputs[3, 0] = 0.0
    for dtype in (F64, torch.float32):
        assert decided(classifier_risk(Marked(), inputs, dtype), "forward_mode")


@pytest.mark.parametrize(
    ("single", "double", "expected"),
    [(3e-3, 0.0, True), (0.1, 0.0, False), (3e-3, 3e-3, False), (0.0, 1e-5, False)],
)
def test_a_little_in_single_precision_is_allowed_only_where_double_precision_agrees(
    single: float, double: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as units within rounding of a kink make, of which a deep network has some in every batch."""
    monkeypatch.setattr(_WrongTangent, "share", {torch.float32: single, F64: double})
    torch.manual_seed(0)
    inputs = normal(20, 4, seed=1)
    inputs[:, 0] = 0.0
    assert decided(classifier_risk(Marked(), inputs, torch.float32), "forward_mode") == expected


@pytest.mark.slow
def test_a_deep_network_with_kinks_keeps_forward_mode_and_its_layers_rules() -> None:
    """Its derivatives of a sample alone and among others differ by 1.5e-3 in single precision."""
    problem = resnet18()
    risk = ns.EmpiricalRisk(problem.model, CE, (problem.inputs[:16], problem.targets[:16]))
    assert decided(risk, "forward_mode")
    assert len(risk._capabilities.ruled_layers or []) == 38
    assert decided(risk, "forward_over_reverse")


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
    risk = classifier_risk(Gated(), inputs)
    assert not decided(risk, "forward_mode")
    constant = ns.EmpiricalRisk.from_losses(
        lambda w: w[:1] * 0 + torch.ones(4, dtype=F64), torch.zeros(3, dtype=F64)
    )
    assert not decided(constant, "forward_mode")


@pytest.mark.parametrize(("name", "expected"), [("mlp cross-entropy", True), ("no forward mode", False)])
def test_forward_mode_is_used_where_it_exists(name: str, expected: bool) -> None:
    assert decided(CASES[name].risk(), "forward_mode") is expected


def test_a_forward_derivative_that_disagrees_with_reverse_mode_is_not_trusted() -> None:
    class Lying(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x**2

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, upstream: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * upstream

        @staticmethod
        def jvp(ctx, tangent: Tensor) -> Tensor:
            return 3 * ctx.saved_tensors[0] * tangent

    risk = EmpiricalRisk.from_losses(lambda w: Lying.apply(w), torch.ones(2, dtype=F64))
    assert not decided(risk, "forward_mode")
    theta = torch.tensor([1.0, -2.0], dtype=F64)
    close(risk.jvp(theta, torch.ones(2, dtype=F64)), 2 * theta)
