"""A call that fails or is interrupted leaves the module as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import noisescape as ns
from architectures.inputs import vectors
from architectures.reference import seeded
from cases import F64, normal
from risk_calls import CALLS, OF_TENSOR_OUTPUTS
from snapshots import Snapshot


class Blown(Exception):
    pass


class Fuse:
    """Counts down, and blows at zero; while it is negative nothing happens."""

    def __init__(self, error: type[BaseException]) -> None:
        self.left, self.error = -1, error

    def burn(self) -> None:
        if self.left == 0:
            raise self.error("blown")
        if self.left > 0:
            self.left -= 1


class Fused(nn.Module):
    """A model with a fuse in the midst of its forward pass."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        norm = nn.LayerNorm(4)
        self.body = nn.Sequential(norm, parametrizations.weight_norm(nn.Linear(4, 4)), norm, nn.Tanh())
        self.head = nn.Linear(4, 3)
        vars(self)["fuse"] = fuse

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        self.fuse.burn()
        return self.head(hidden)


FAILING = [
    "losses", "losses, replicas", "gradient", "vjp", "minibatch_gradient", "metric",
    "jvp", "per_sample_gradients", "factored_gradients", "hessian", "hessian, a vector",
    "hvp_by_forward_mode", "noise_covariance", "gauss_newton", "product_trace", "eigenpairs", "measure",
    "expected_sharpness", "simulate, SGD",
]  # fmt: skip


@pytest.mark.parametrize("error", [Blown, KeyboardInterrupt], ids=["error", "interrupt"])
@pytest.mark.parametrize("where", ["model", "loss"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_failing_construction_leaves_the_module_as_it_was(
    where: str, error: type[BaseException], after: int
) -> None:
    model, loss, fuse = fused(where, error)
    snapshot = Snapshot(model)
    fuse.left = after
    try:
        ns.EmpiricalRisk(model, loss, vectors())
    except error:
        pass
    else:
        assert after > 0
    fuse.left = -1
    assert snapshot.damage() == []


@pytest.mark.parametrize("error", [Blown, KeyboardInterrupt], ids=["error", "interrupt"])
@pytest.mark.parametrize("where", ["model", "loss"])
@pytest.mark.parametrize("call", FAILING)
def test_a_failing_call_leaves_the_module_as_it_was(call: str, where: str, error: type[BaseException]) -> None:
    model, loss, fuse = fused(where, error)
    risk = ns.EmpiricalRisk(model, loss, vectors())
    theta = risk.parameters()
    make = {**CALLS, **OF_TENSOR_OUTPUTS}[call]
    if where == "loss" and call == "metric":
        pytest.skip("a metric does not call the loss")
    snapshot = Snapshot(model)
    fuse.left = 0
    with pytest.raises(error):
        make(risk, theta, normal(len(theta), 3, seed=8))
    fuse.left = -1
    assert snapshot.damage() == []
    assert risk.loss(theta).isfinite()


def fused(where: str, error: type[BaseException]) -> tuple[nn.Module, Callable[..., Tensor], Fuse]:
    fuse, idle = Fuse(error), Fuse(error)
    with seeded():
        model = Fused(fuse if where == "model" else idle).to(F64)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if where == "loss":
            fuse.burn()
        return F.cross_entropy(outputs, targets, reduction="none")

    return model, loss, fuse
