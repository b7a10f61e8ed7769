"""What a probe cannot have it leaves out, with one warning; wrong arguments raise at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64, classes, normal
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.training import Probe, ProbeWarning

X, Y = normal(16, 4, seed=1), classes(16, of=3, seed=2)
NOISE = {"trace_covariance", "trace_covariance_stderr", "squared_gradient_norm", "squared_gradient_norm_stderr"}
FIRST_ORDER = {
    f"probe/{name}" for name in (*NOISE, "samples", "loss", "scale", "scale_low", "scale_high", "seconds")
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * 3 * ctx.saved_tensors[0] ** 2


class Cubes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


class Centred(nn.Module):
    """Each sample's output depends on the others'."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_without_a_second_derivative_what_needs_none_is_left():
    model = nn.Sequential(nn.Linear(4, 5), Cubes(), nn.Linear(5, 3)).to(F64)
    probe = Probe(model, F.cross_entropy)
    with pytest.warns(ProbeWarning, match=r"curvature.*not the derivatives of its gradient"):
        found = probe.measure(sgd(model), batch=(X, Y))
    assert found.keys() == FIRST_ORDER
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        assert probe.measure(sgd(model), batch=(X, Y)).keys() == FIRST_ORDER


def test_samples_that_influence_each_other_are_not_probed():
    model = nn.Sequential(nn.Linear(4, 3), Centred()).to(F64)
    with pytest.warns(ProbeWarning, match=r"all figures.*influence each other"):
        assert Probe(model, F.cross_entropy).measure(sgd(model), batch=(X, Y)) == {}


def test_a_loss_that_is_not_finite_is_named_and_the_next_one_probed():
    model = network()
    probe = Probe(model, F.cross_entropy)
    assert probe.measure(sgd(model), batch=(X, Y))
    with pytest.warns(ProbeWarning, match="not finite"):
        assert probe.measure(sgd(model), batch=(X.where(X < 1, torch.nan), Y)) == {}
    assert probe.measure(sgd(model), batch=(X, Y))["probe/samples"] == 16


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (None, "no present batch"),
        ((X[:5], Y[:5]), "at least 8 samples"),
        (X, "pair"),
        ((X, Y[:9]), "disagree"),
        ({"x": X}, "pair"),
        ((X, None), "targets|NoneType|loss"),
    ],
)
def test_a_batch_that_cannot_be_used_is_said_once(batch, reason):
    model = network()
    probe = Probe(model, F.cross_entropy)
    with pytest.warns(ProbeWarning, match=reason):
        assert probe.measure(sgd(model), batch=batch) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe.measure(sgd(model), batch=batch) == {}
    assert probe.measure(sgd(model), batch=(X, Y))["probe/samples"] == 16


def test_without_a_batch_size_its_figures_are_left_out():
    model = network()
    probe = Probe(model, F.cross_entropy, (X, Y))
    with pytest.warns(ProbeWarning, match="batch_size"):
        found = probe.measure(sgd(model))
    assert "probe/hessian_noise_trace" not in found
    assert "probe/batch_sharpness" not in found
    assert found["probe/stability_edge"] == 20


def test_an_optimiser_without_an_edge_still_has_the_top_eigenvalue():
    model = network()
    probe = Probe(model, F.cross_entropy)
    found = probe.measure(torch.optim.NAdam(model.parameters()), batch=(X, Y))
    assert found["probe/top_eigenvalue"] > 0
    assert not any("edge" in name for name in found)
    with pytest.warns(ProbeWarning, match=r"stability edge.*maximises"):
        found = probe.measure(sgd(model, maximize=True), batch=(X, Y))
    assert found["probe/top_eigenvalue"] > 0
    assert not any("edge" in name for name in found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda x: x, F.cross_entropy), InvalidTypeError, "nn.Module"),
        ((network(), "cross entropy"), InvalidTypeError, "callable"),
        ((network(), nn.CrossEntropyLoss), InvalidTypeError, "class"),
        ((network().requires_grad_(False), F.cross_entropy), InvalidValueError, "no trainable"),
        ((network(), F.cross_entropy, (X[:3], Y[:3])), InvalidValueError, "at least 8 held-out"),
        ((network(), F.cross_entropy, (X, Y[:3])), InvalidValueError, "disagree"),
        ((network(), F.cross_entropy, {"x": X}), InvalidTypeError, "probe data"),
        ((network(), F.cross_entropy, iter([(X, Y)])), InvalidTypeError, "re-iterable"),
        ((network(), F.cross_entropy, 3), InvalidTypeError, "probe data"),
    ],
)
def test_wrong_arguments_raise_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        Probe(*arguments)


def test_a_number_of_samples_below_eight_is_refused():
    with pytest.raises(InvalidValueError, match="at least 8"):
        Probe(network(), F.cross_entropy, samples=4)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_sharded_parameters_are_refused():
    from torch.distributed.fsdp import fully_shard

    model = network()
    later = Probe(model, F.cross_entropy)
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    with pytest.raises(InvalidTypeError, match=r"sharded .DTensor, FSDP.*DDP"):
        Probe(model, F.cross_entropy)
    with pytest.warns(ProbeWarning, match="sharded"):
        assert later.measure(sgd(model), batch=(X, Y)) == {}
