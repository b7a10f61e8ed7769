"""The module is the caller's: after every call it is, object for object and bit for bit, what it was before."""

from __future__ import annotations

import copy
import functools
import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import noisescape as ns
from architectures import (
    Checkpointed,
    Sequential,
    TiedEmbeddings,
    gpt2_lora,
    new_weight_norm,
    of_token_logits,
    old_weight_norm,
    pruned,
    seeded,
    shared_submodule,
    signals,
    spectral_norm,
    tokens,
    vectors,
)
from cases import F64, classes, normal

Subject = tuple[nn.Module, Callable[[Any, Any], Tensor], tuple[Any, Any]]

pytestmark = pytest.mark.filterwarnings("ignore:parameters have gradient hooks")  # they are told, and kept


# ---------------------------------------------------------------------- modules that hold more than parameters


class Counting(nn.Module):
    """Keeps a count, a list, a dict, a buffer and a plain tensor, all changed by each forward pass."""

    def __init__(self, *kept: str) -> None:
        super().__init__()
        self.kept = kept
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.calls, self.seen, self.by_size = 0, [], {}
        self.register_buffer("mean", torch.zeros(5, dtype=F64))
        self.total = torch.zeros(5, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if "count" in self.kept:
            self.calls += 1
        if "list" in self.kept:
            self.seen.append(hidden.detach())
        if "dict" in self.kept:
            self.by_size[len(x)] = hidden.detach()
        if "buffer" in self.kept:
            self.mean.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        if "tensor" in self.kept:
            self.total += hidden.detach().sum(0)
        return self.second(hidden)


def hooked(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    calls: list[str] = []
    if kind == "forward":
        model[0].register_forward_hook(lambda module, inputs, output: calls.append("forward"))
        model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif kind == "pre":
        model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    elif kind == "backward":
        model[2].register_full_backward_hook(lambda module, inward, outward: None)
    else:
        model[0].weight.register_hook(lambda gradient: gradient)
    return model


def attentive() -> nn.Module:
    body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 4), body, nn.Flatten(), nn.Linear(8, 3))


def batch_norm_in_eval() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).to(F64).eval()


def frozen_with_gradients() -> nn.Module:
    """In the midst of training: gradients accumulated, some parameters frozen, one part in eval mode."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5).eval(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).to(
        F64
    )
    model[2].requires_grad_(False)
    model(vectors()[0]).sum().backward()
    return model


def distributed() -> nn.Module:
    return nn.parallel.DistributedDataParallel(batch_norm_in_eval()).eval()


def _of(model: Callable[[], nn.Module], data: Callable[[], Any] = vectors, loss: Any = F.cross_entropy) -> Any:
    def build() -> Subject:
        with seeded():
            return model().to(F64), loss, data()

    return build


SEQUENCES = (normal(6, 4, 3, seed=6), classes(6, of=3, seed=5))

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "attention": _of(attentive),
    "in the midst of training": _of(frozen_with_gradients),
    "batch norm in eval": _of(batch_norm_in_eval),
    "shared submodule": _of(shared_submodule),
    "tied parameter": _of(TiedEmbeddings, lambda: tokens(7)),
    "weight norm, old": _of(old_weight_norm, signals),
    "weight norm, new": _of(new_weight_norm, signals),
    "spectral norm, old": _of(lambda: spectral_norm(nn.utils.spectral_norm)),
    "spectral norm, new": _of(lambda: spectral_norm(parametrizations.spectral_norm)),
    "pruned": _of(pruned),
    "lstm": _of(lambda: Sequential(nn.LSTM), lambda: SEQUENCES),
    "rnn": _of(lambda: Sequential(nn.RNN), lambda: SEQUENCES),
    "checkpointed": _of(Checkpointed),
    "lora by peft": _of(gpt2_lora, tokens, of_token_logits),
    "forward hooks": _of(lambda: hooked("forward")),
    "forward pre-hook": _of(lambda: hooked("pre")),
    "full backward hook": _of(lambda: hooked("backward")),
    "hook of a parameter": _of(lambda: hooked("parameter")),
    "counts its calls": _of(lambda: Counting("count")),
    "keeps a list": _of(lambda: Counting("list")),
    "keeps a dict": _of(lambda: Counting("dict")),
    "changes a buffer in eval": _of(lambda: Counting("buffer").eval()),
    "changes a plain tensor": _of(lambda: Counting("tensor")),
    "DataParallel": _of(lambda: nn.DataParallel(batch_norm_in_eval())),
    "DistributedDataParallel": _of(distributed),
}


# ---------------------------------------------------------------------- what is compared


def _value(thing: Any) -> Any:
    """A copy that shows later whether a tensor, or a tensor in a container, has changed."""
    if isinstance(thing, Tensor):
        return thing.detach().clone()
    if isinstance(thing, dict):
        return {key: (item, _value(item)) for key, item in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [(item, _value(item)) for item in thing]
    return None


def _same(thing: Any, kept: Any, value: Any) -> bool:
    if isinstance(thing, Tensor):
        return thing is kept and torch.equal(thing.detach(), value)
    if isinstance(thing, dict):
        return (
            thing is kept
            and list(thing) == list(value)
            and all(_same(item, *value[key]) for key, item in thing.items())
        )
    if isinstance(thing, (list, tuple)):
        return (
            thing is kept
            and len(thing) == len(value)
            and all(_same(item, *was) for item, was in zip(thing, value, strict=True))
        )
    if isinstance(thing, (bool, int, float, str)):
        return type(thing) is type(kept) and thing == kept
    return thing is kept


class Snapshot:
    """All of a module: every object by identity, every tensor by its bits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.things = self._things()
        self.values = {name: _value(thing) for name, thing in self.things.items()}
        self.flags = self._flags()
        self.copies = _works(copy.deepcopy, model)
        self.saves = _works(_saved, model)

    def _things(self) -> dict[str, Any]:
        model, found = self.model, {}
        for name, module in model.named_modules(remove_duplicate=False):
            found[f"module {name}"] = module
            for key, thing in vars(module).items():  # parameters, buffers, hooks, flags and plain attributes
                found[f"{name}.{key}"] = thing
        for name, parameter in model.named_parameters(remove_duplicate=False):
            found[f"parameter {name}"] = parameter
            found[f"gradient of {name}"] = parameter.grad
            found[f"hooks of {name}"] = parameter._backward_hooks
        for name, buffer in model.named_buffers(remove_duplicate=False):
            found[f"buffer {name}"] = buffer
        return found

    def _flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            flags[name] = (type(parameter), parameter.requires_grad, parameter.is_leaf, parameter._version)
        for name, module in self.model.named_modules(remove_duplicate=False):
            flags[f"module {name}"] = (type(module), module.training)
        flags["state"] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return flags

    def damage(self) -> list[str]:
        """Names of what is no longer what it was."""
        try:
            return self._differences()
        except RuntimeError as error:  # a tensor of some transform has stayed behind
            return [f"cannot be read any more: {error}"]

    def _differences(self) -> list[str]:
        things, flags = self._things(), self._flags()
        found = [f"{name} is gone" for name in self.things if name not in things]
        found += [f"{name} is new" for name in things if name not in self.things]
        common = [name for name in things if name in self.things]
        found += [name for name in common if not _same(things[name], self.things[name], self.values[name])]
        state, was = flags.pop("state"), dict(self.flags)
        old = was.pop("state")
        found += [f"flags of {name}" for name in {*flags, *was} if flags.get(name) != was.get(name)]
        if list(state) != list(old) or any(not torch.equal(state[name], old[name]) for name in old):
            found.append("state dict")
        if self.copies and not _works(copy.deepcopy, self.model):
            found.append("deepcopy")
        if self.saves and not _works(_saved, self.model):
            found.append("torch.save")
        return found


def _works(use: Callable[[nn.Module], object], model: nn.Module) -> bool:
    try:
        use(model)
    except Exception:  # local functions cannot be pickled, a result of old weight norm not be copied
        return False
    return True


def _saved(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


# ---------------------------------------------------------------------- every public call


Call = Callable[[ns.EmpiricalRisk, Tensor, Tensor], object]


def logits(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits.movedim(-1, 1)


def total(outputs: Any, targets: Tensor) -> Tensor:
    return logits(outputs).flatten(1).sum(1)


def drawn(outputs: Any, generator: torch.Generator) -> Tensor:
    return logits(outputs).argmax(1)


GENERATOR = torch.Generator()

CALLS: dict[str, Call] = {
    "parameters": lambda risk, theta, block: risk.parameters(),
    "state_dict": lambda risk, theta, block: risk.state_dict(theta),
    "losses": lambda risk, theta, block: risk.losses(theta),
    "losses, replicas": lambda risk, theta, block: risk.losses(torch.stack([theta, theta + 1e-3])),
    "unchecked_losses": lambda risk, theta, block: risk.unchecked_losses(theta),
    "loss": lambda risk, theta, block: risk.loss(theta),
    "metric": lambda risk, theta, block: risk.metric(theta, total),
    "gradient": lambda risk, theta, block: risk.gradient(theta),
    "gradient, replicas": lambda risk, theta, block: risk.gradient(torch.stack([theta, theta + 1e-3])),
    "weighted_gradient": lambda risk, theta, block: risk.weighted_gradient(theta, torch.ones(6, 2, dtype=F64)),
    "minibatch_gradient": lambda risk, theta, block: risk.minibatch_gradient(theta, torch.tensor([0, 3, 0])),
    "directional_derivatives": lambda risk, theta, block: risk.directional_derivatives(theta, block),
    "per_sample_gradients": lambda risk, theta, block: risk.per_sample_gradients(theta),
    "per_sample_gradients, chosen": lambda risk, theta, block: risk.per_sample_gradients(
        theta, torch.tensor([2, 0])
    ),
    "per_sample_gradient_chunks": lambda risk, theta, block: list(risk.per_sample_gradient_chunks(theta)),
    "per_sample_square_norms": lambda risk, theta, block: risk.per_sample_square_norms(theta),
    "factored_gradients": lambda risk, theta, block: risk.factored_gradients(theta),
    "factored_gradient_chunks": lambda risk, theta, block: list(risk.factored_gradient_chunks(theta)),
    "holds_gradients": lambda risk, theta, block: risk.holds_gradients(theta),
    "gradient_graphs": lambda risk, theta, block: list(risk.gradient_graphs(theta)),
    "bend": lambda risk, theta, block: risk.bend(risk.gradient_graphs(theta), block),
    "hessian_product": lambda risk, theta, block: risk.hessian_product(theta, block),
    "finite_difference_hessian": lambda risk, theta, block: risk.finite_difference_hessian(theta) @ block,
    "fingerprint": lambda risk, theta, block: risk.fingerprint(),
    "gradient_derivatives": lambda risk, theta, block: risk.gradient_derivatives(theta, block),
    "hessian, a vector": lambda risk, theta, block: risk.hessian(theta) @ block[:, 0],
    "hessian": lambda risk, theta, block: risk.hessian(theta) @ block,
    "noise_covariance": lambda risk, theta, block: risk.noise_covariance(theta, 3) @ block,
    "empirical_fisher": lambda risk, theta, block: risk.empirical_fisher(theta).sample(2),
    "fisher, sampled": lambda risk, theta, block: risk.fisher(theta, sample_targets=drawn) @ block,
    "with_data": lambda risk, theta, block: risk.with_data(risk_data(risk)).loss(theta),
    "to": lambda risk, theta, block: risk.to(torch.float32).gradient(theta.float()),
    "trace": lambda risk, theta, block: ns.trace(risk.hessian(theta), rtol=0.5),
    "diagonal": lambda risk, theta, block: ns.diagonal(risk.hessian(theta), rtol=0.5),
    "product_trace": lambda risk, theta, block: ns.product_trace(
        risk.hessian(theta), risk.noise_covariance(theta, 3), rtol=0.5
    ),
    "eigenpairs": lambda risk, theta, block: ns.eigenpairs(risk.hessian(theta), 2, tol=0.1),
    "expected_sharpness": lambda risk, theta, block: ns.expected_sharpness(risk, theta, draws=2),
    "measure": lambda risk, theta, block: ns.measure(risk, theta, batch_size=3, k=2, rtol=0.5),
    "simulate, SGD": lambda risk, theta, block: ns.simulate(
        risk, ns.SGD(2), theta, lr=0.01, steps=3, progress=False
    ),
    "simulate, GLD diagonal": lambda risk, theta, block: ns.simulate(
        risk, ns.GLDDiagonal(2), theta, lr=0.01, steps=2, replicas=2, progress=False
    ),
    "forecast_memory": lambda risk, theta, block: ns.forecast_memory(
        risk, lambda risk, theta: risk.gradient(theta)
    ),
}
OF_TENSOR_OUTPUTS: dict[str, Call] = {
    "accuracy": lambda risk, theta, block: risk.accuracy(theta),
    "gauss_newton": lambda risk, theta, block: risk.gauss_newton(theta) @ block,
    "gauss_newton_product": lambda risk, theta, block: risk.gauss_newton_product(theta, block[:, 0]),
    "gauss_newton_forms": lambda risk, theta, block: risk.gauss_newton_forms(theta, block),
    "gauss_newton_draws": lambda risk, theta, block: risk.gauss_newton_draws(theta, 2, GENERATOR),
    "fisher": lambda risk, theta, block: risk.fisher(theta) @ block,
}
INERT = {
    "bends_blocks", "bytes_per_sample", "chunk_size", "dense_hessian", "device", "dimension", "dtype",
    "forward_mode", "from_losses", "from_sample_loss", "gradient_width", "keeps_graphs", "maps_cotangents",
    "maps_replicas", "pushes_by_reverse", "pushes_gradients", "pushes_outputs", "sample_count",
    "second_derivative_error",
}  # fmt: skip
"""Settings, and what the calls above go through."""


def risk_data(risk: ns.EmpiricalRisk) -> Any:
    return risk._samples.inputs, risk._samples.targets


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Used:
    """A module after every call there is: what each call did to it, which calls raised, whether it still learns."""

    def __init__(self, name: str) -> None:
        self.damage: dict[str, list[str]] = {}
        self.raised: dict[str, str] = {}
        model, loss, data = SUBJECTS[name]()
        self.model, self.loss, self.data = model, loss, data
        self.snapshot = Snapshot(model)
        self._try("construction", lambda: setattr(self, "risk", ns.EmpiricalRisk(model, loss, data)))
        if "construction" in self.raised:
            return
        risk, theta = self.risk, self.risk.parameters()
        block = normal(len(theta), 3, seed=8)
        tensor_outputs = name != "lora by peft"
        for call, make in {**CALLS, **(OF_TENSOR_OUTPUTS if tensor_outputs else {})}.items():
            self._try(call, functools.partial(make, risk, theta, block))

    def _try(self, call: str, make: Callable[[], object]) -> None:
        try:
            make()
        except Exception as error:
            self.raised[call] = f"{type(error).__name__}: {str(error)[:120]}"
        damage = self.snapshot.damage()[:6]
        if damage and damage not in self.damage.values():
            self.damage[call] = damage  # only what this call did anew


@functools.cache
def used(name: str) -> Used:
    return Used(name)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_call_leaves_the_module_as_it_was(name: str) -> None:
    assert used(name).damage == {}


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_call_returns(name: str) -> None:
    """Otherwise the test above would hold for nothing. The one exception needs forward mode over reverse."""
    assert used(name).raised.keys() - {"gradient_derivatives"} == set(), used(name).raised


@pytest.mark.parametrize("name", SUBJECTS)
def test_training_goes_on(name: str) -> None:
    subject = used(name)
    model, (inputs, targets) = subject.model, subject.data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    outputs = model(inputs)
    subject.loss(outputs, targets).mean().backward()
    optimizer.step()
    trainable = [(p, was) for p, was in zip(model.parameters(), before, strict=True) if p.requires_grad]
    assert all(p.grad is not None for p, _ in trainable)
    for p, was in trainable:
        torch.testing.assert_close(p.detach(), was - 0.1 * p.grad, rtol=1e-12, atol=1e-14)
    assert sum(bool((p.grad != 0).any()) for p, _ in trainable) >= 2
    with torch.no_grad():
        again = model(inputs)
    assert not torch.equal(logits(outputs), logits(again))


def test_every_public_call_is_made() -> None:
    public = {name for name, _ in inspect.getmembers(ns.EmpiricalRisk) if not name.startswith("_")}
    made = {call.split(",")[0] for call in {**CALLS, **OF_TENSOR_OUTPUTS}}
    assert public - made - INERT == set()


# ---------------------------------------------------------------------- when a call fails


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
    "losses", "losses, replicas", "gradient", "weighted_gradient", "minibatch_gradient", "metric",
    "directional_derivatives", "per_sample_gradients", "factored_gradients", "hessian", "hessian, a vector",
    "gradient_derivatives", "noise_covariance", "gauss_newton", "product_trace", "eigenpairs", "measure",
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


# ---------------------------------------------------------------------- the comparison itself


DAMAGES: dict[str, Callable[[nn.Module], object]] = {
    "a value": lambda model: model.first.weight.detach()[0, 0].add_(1e-15),
    "an object": lambda model: setattr(model.first, "weight", nn.Parameter(model.first.weight.detach().clone())),
    "a frozen parameter": lambda model: model.first.weight.requires_grad_(False),
    "a gradient": lambda model: setattr(model.first.weight, "grad", torch.zeros(5, 4, dtype=F64)),
    "a flag": lambda model: model.second.eval(),
    "a buffer": lambda model: model.mean.add_(1),
    "a plain tensor": lambda model: model.total.add_(1),
    "a list": lambda model: model.seen.append(1),
    "a count": lambda model: setattr(model, "calls", 7),
    "an attribute": lambda model: setattr(model, "extra", None),
    "a hook": lambda model: model.first.register_forward_hook(lambda *_: None),
    "a hook of a parameter": lambda model: model.first.weight.register_hook(lambda gradient: gradient),
    "a submodule": lambda model: setattr(model, "second", copy.deepcopy(model.second)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_reference_every_damage_is_noticed(name: str) -> None:
    model = Counting().to(F64)
    snapshot = Snapshot(model)
    assert snapshot.damage() == []
    DAMAGES[name](model)
    assert snapshot.damage() != []
