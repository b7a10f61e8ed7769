"""What looks like a mistake and is sound: accepted, with the derivatives of plain autograd."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from cases import F64, normal
from noisescape.risk import EmpiricalRisk
from refusable import DATA, Reentrant, X, Y, linear, unreduced


class Registered(nn.Module):
    """A trainable scale, and a fixed one in a buffer and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = linear(), nn.Parameter(torch.full((3,), 0.7, dtype=F64))
        self.register_buffer("offset", torch.full((3,), 0.2, dtype=F64))
        self.fixed = [linear(3).requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed[0](self.linear(x)) * self.scale + self.offset


class Checkpointed(Reentrant):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(torch.tanh, self.first(x), use_reentrant=False))


class Parts(nn.Module):
    """Complex arithmetic on real parameters, as the error advises."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex128) @ torch.view_as_complex(self.weight)).abs()


class Partly(nn.Module):
    """A backbone under no_grad below a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4, dtype=F64).requires_grad_(False), linear()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            states = torch.tanh(self.backbone(x))
        return self.head(states)


SOUND: dict[str, Callable[[], nn.Module]] = {
    "registered": Registered,
    "checkpointed": Checkpointed,
    "complex parts": Parts,
    "frozen backbone": Partly,
    "data parallel": lambda: nn.DataParallel(nn.Sequential(linear(), nn.Tanh())),
}


def check(model: nn.Module, plain: nn.Module, data: tuple[Tensor, Tensor] = DATA) -> None:
    """Losses, gradient and a Hessian product of the model against those of another, alike and bare."""
    risk = EmpiricalRisk(model, unreduced, data)
    theta = risk.parameters()
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    values = unreduced(plain(data[0]), data[1])
    parts = torch.autograd.grad(values.mean(), trained, create_graph=True)
    gradient = torch.cat([part.reshape(-1) for part in parts])
    assert_close(risk.losses(theta), values.detach())
    assert_close(risk.gradient(theta), gradient.detach())
    assert_close(risk.per_sample_gradients(theta).mean(0), gradient.detach())
    direction = normal(len(theta), seed=5)
    products = torch.autograd.grad(gradient @ direction, trained, materialize_grads=True)
    assert_close(risk.hessian(theta) @ direction, torch.cat([part.reshape(-1) for part in products]))


@pytest.mark.parametrize("name", SOUND)
def test_what_looks_alike_and_is_sound_is_accepted(name: str) -> None:
    torch.manual_seed(0)
    model = SOUND[name]()
    check(model, model)


@pytest.fixture
def process_group() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_a_distributed_model_is_accepted(process_group: None) -> None:
    inner = nn.Sequential(linear(), nn.Tanh(), nn.Linear(3, 3, dtype=F64))
    model = nn.parallel.DistributedDataParallel(inner)
    check(model, inner)
    unreduced(model(X), Y).mean().backward()  # training goes on
    assert all(parameter.grad is not None for parameter in inner.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("way", ["wrapped", "in place", "inside"])
def test_a_compiled_model_is_accepted(way: str) -> None:
    torch._dynamo.reset()
    inner = nn.Sequential(linear(), nn.Tanh(), nn.Linear(3, 3, dtype=F64))
    plain = copy.deepcopy(inner)
    if way == "wrapped":
        model = torch.compile(inner, backend="eager")
    elif way == "in place":
        inner.compile(backend="eager")
        model = inner
    else:
        model = nn.Sequential(torch.compile(inner[0], backend="eager"), *inner[1:])
    check(model, plain)  # type: ignore[arg-type]
