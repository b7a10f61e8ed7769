"""Backward passes that hide something from autograd: first derivatives are right, the rest is refused by name."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, normal
from networks import X, Y, flat_gradient, network
from slowness import quick

CE = nn.functional.cross_entropy


class _Hidden(torch.autograd.Function):
    """tanh whose backward pass is invisible to autograd, in one of three ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.how = how
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if ctx.how == "numpy":
            return torch.from_numpy(upstream.detach().numpy() * (1 - np.tanh(x.detach().numpy()) ** 2)), None
        with torch.no_grad():
            return upstream * (1 - x.tanh() ** 2), None


class _OnceTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _: str) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return upstream * (1 - ctx.saved_tensors[0].tanh() ** 2), None


class Opaque(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layers, self.how = network(), how

    def forward(self, x: Tensor) -> Tensor:
        kind = _OnceTanh if self.how == "once" else _Hidden
        return self.layers[2](kind.apply(self.layers[0](x), self.how))


@pytest.mark.parametrize(
    ("how", "dtype"),
    quick(
        [("numpy", F64), ("once", torch.float32)],
        itertools.product(["numpy", "no_grad", "once"], [F64, torch.float32]),
    ),
)
@pytest.mark.parametrize("budget", [None, 20_000])
def test_first_derivatives_need_no_second_ones(how: str, dtype: torch.dtype, budget: int | None) -> None:
    """Gv by two reverse passes would lack what a backward pass hides; then it comes from single gradients."""
    model = Opaque(how).to(dtype)
    risk = ns.EmpiricalRisk(model, CE, (X.to(dtype), Y), memory_budget=budget)
    theta = risk.parameters()
    block = normal(len(theta), 3, seed=4).to(dtype)
    rows = torch.stack([flat_gradient(model, CE(model(X[n : n + 1].to(dtype)), Y[n : n + 1])) for n in range(60)])
    centred = rows - rows.mean(0)
    torch.testing.assert_close(risk.jvp(theta, block), rows @ block)
    torch.testing.assert_close(risk.jvp(theta, block[:, 0]), rows @ block[:, 0])
    torch.testing.assert_close(
        risk.noise_covariance(theta, 5) @ block, centred.T @ (centred @ block) / 300, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ValueError, match="differentiable once"):
        risk.gauss_newton(theta) @ block
    with pytest.raises(ValueError, match="DifferenceHessian"):
        risk.hessian(theta) @ block


def test_a_backward_pass_that_clips_is_refused() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layers[0](x)
            if hidden.requires_grad:
                hidden.register_hook(lambda g: g.clamp(-1e-2, 1e-2))
            return self.layers[2](hidden.tanh())

    with pytest.raises(ns.BatchCouplingError):
        ns.EmpiricalRisk(Clipped(), CE, (X, Y))


def test_gradient_hooks_of_parameters_bring_a_warning() -> None:
    model = network()
    model[0].weight.register_hook(lambda g: g * 0)
    with pytest.warns(UserWarning, match=r"gradient hooks \(0\.weight\)"):
        ns.EmpiricalRisk(model, CE, (X, Y))
