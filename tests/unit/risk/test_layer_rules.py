"""Gradients of single samples by the rules of layers, against reverse mode one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from cases import F64, classes, normal
from internals import without_rule
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradients import factored_gradients, per_sample_square_distances, per_sample_square_norms
from slowness import quick

COUNT = 7
Build = Callable[[], nn.Module]


class Tokens(nn.Module):
    """Embeddings of tokens, with some layers over them; the output is over all places."""

    def __init__(self, *layers: nn.Module, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4, padding_idx=padding_idx)
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.layers(self.table(tokens)))


def images(*layers: nn.Module) -> Build:
    return lambda: nn.Sequential(*layers, nn.Tanh(), nn.Flatten())


LAYERS: dict[str, tuple[Build, Tensor]] = {
    "linear, one vector": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh()), normal(COUNT, 5)),
    "linear, few places": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Tanh()), normal(COUNT, 2, 9)),
    "linear, many places": (lambda: nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh()), normal(COUNT, 9, 2)),
    "linear, a plane of places": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()), normal(COUNT, 2, 3, 4)),
    "linear, one place": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh()), normal(COUNT, 1, 4)),
    "convolution": (images(nn.Conv2d(2, 3, 3)), normal(COUNT, 2, 5, 6)),
    "convolution of few places": (images(nn.Conv2d(3, 8, 3)), normal(COUNT, 3, 3, 4)),
    "strides": (images(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0))), normal(COUNT, 2, 6, 5)),
    "dilation": (images(nn.Conv2d(2, 3, 2, dilation=(1, 2))), normal(COUNT, 2, 4, 5)),
    "groups": (images(nn.Conv2d(4, 6, 3, groups=2)), normal(COUNT, 4, 4, 4)),
    "depthwise": (images(nn.Conv2d(4, 4, 3, groups=4, bias=False)), normal(COUNT, 4, 4, 4)),
    "same": (images(nn.Conv2d(2, 3, (2, 3), padding="same")), normal(COUNT, 2, 4, 4)),
    "valid": (images(nn.Conv2d(2, 3, 2, padding="valid")), normal(COUNT, 2, 4, 4)),
    "reflected": (images(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), normal(COUNT, 2, 4, 4)),
    "circular": (images(nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular")), normal(COUNT, 2, 5)),
    "one dimension": (images(nn.Conv1d(2, 3, 3, stride=2)), normal(COUNT, 2, 9)),
    "three dimensions": (images(nn.Conv3d(2, 3, 2, padding=(1, 0, 0))), normal(COUNT, 2, 3, 4, 3)),
    "embedding": (Tokens, classes(COUNT, 8, of=6)),
    "embedding of one token": (Tokens, classes(COUNT, of=6)),
    "padding": (lambda: Tokens(padding_idx=0), classes(COUNT, 8, of=3)),
    "layer normalisation": (lambda: Tokens(nn.LayerNorm(4)), classes(COUNT, 3, of=6)),
    "without bias": (lambda: Tokens(nn.LayerNorm(4, bias=False)), classes(COUNT, 3, of=6)),
    "over two dimensions": (
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 2), nn.Tanh()),
        normal(COUNT, 2, 3, 4),
    ),
    "root mean square": (lambda: Tokens(nn.RMSNorm(4, eps=1e-3)), classes(COUNT, 3, of=6)),
    "groups of channels": (images(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4)), normal(COUNT, 2, 4, 4)),
    "groups without places": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Tanh()), normal(COUNT, 4)),
    "fixed statistics": (images(nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4, eps=0.1).eval()), normal(COUNT, 2, 4, 4)),
    "fixed statistics, no places": (lambda: nn.Sequential(nn.BatchNorm1d(4).eval(), nn.Tanh()), normal(COUNT, 4)),
    "one layer after another": (
        lambda: Tokens(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)),
        classes(COUNT, 4, of=6),
    ),
}


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1) - targets[:, None]).square().sum(1)


def risk_of(build: Build, inputs: Tensor, **options: int) -> EmpiricalRisk:
    torch.manual_seed(3)
    model = build().to(F64)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(normal(len(module.running_mean), seed=8))
            module.running_var.copy_(normal(len(module.running_var), seed=9).square() + 0.5)
    return EmpiricalRisk(model, squared, (inputs, normal(COUNT, seed=5)), **options)


def one_by_one(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    singles = [torch.tensor([n]) for n in range(risk.sample_count)]
    return torch.stack([risk.minibatch_gradient(theta, single) for single in singles])


def held_to_reverse_mode(risk: EmpiricalRisk, theta: Tensor) -> None:
    """Rows, factors and norms."""
    rows = one_by_one(risk, theta)
    rtol = 1e-10 if risk.dtype == F64 else 1e-4
    scale = float(rows.abs().max())
    assert_close(risk.per_sample_gradients(theta), rows, rtol=rtol, atol=rtol * scale)
    assert_close(factored_gradients(risk, theta).rows(), rows, rtol=rtol, atol=rtol * scale)
    norms = per_sample_square_norms(risk, theta)
    assert_close(norms, rows.square().sum(1), rtol=rtol, atol=rtol * float(norms.max()))
    held_to_distances(risk, theta, rows, rtol)


def held_to_distances(risk: EmpiricalRisk, theta: Tensor, rows: Tensor, rtol: float = 1e-10) -> None:
    """From the mean, and from a vector that is no combination of gradients."""
    for centre in (rows.mean(0), rows.mean(0) + rows.abs().max() * normal(risk.dimension, seed=6).to(rows)):
        found = per_sample_square_distances(risk, theta, centre)
        wanted = (rows.double() - centre.double()).square().sum(1)
        assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.max()))


def theta_of(risk: EmpiricalRisk) -> Tensor:
    return risk.parameters() + 0.2 * normal(risk.dimension, seed=4)


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_layer_has_a_rule_that_gives_its_gradients(name: str) -> None:
    risk = risk_of(*LAYERS[name])
    theta = theta_of(risk)
    rows = one_by_one(risk, theta)
    assert without_rule(risk) == []
    assert_close(risk.per_sample_gradients(theta), rows, rtol=1e-10, atol=1e-12)
    assert_close(per_sample_square_norms(risk, theta), rows.square().sum(1), rtol=1e-10, atol=1e-12)
    held_to_distances(risk, theta, rows)


@pytest.mark.parametrize("name", ["convolution", "groups", "three dimensions"])
def test_patches_are_made_a_few_samples_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    risk = risk_of(*LAYERS[name])
    theta = theta_of(risk)
    wanted = one_by_one(risk, theta)
    monkeypatch.setattr("noisescape.risk.layer_rules.TEMPORARY", 8 * 2000)
    assert_close(risk.per_sample_gradients(theta), wanted, rtol=1e-10, atol=1e-12)
    assert_close(per_sample_square_norms(risk, theta), wanted.square().sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear, many places", "convolution", "padding", "one layer after another"])
def test_chunks_give_the_same(name: str) -> None:
    risk = risk_of(*LAYERS[name], chunk_size=3)
    theta = theta_of(risk)
    wanted = one_by_one(risk, theta)
    assert_close(factored_gradients(risk, theta).rows(), wanted, rtol=1e-10, atol=1e-12)
    assert_close(per_sample_square_norms(risk, theta), wanted.square().sum(1), rtol=1e-10, atol=1e-12)


def test_of_gpt2s_linear_layer() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    for places in (1, 2, 9):
        risk = risk_of(lambda: nn.Sequential(conv1d(5, 4), nn.Tanh(), conv1d(3, 5)), normal(COUNT, places, 4))
        theta = theta_of(risk)
        rows = one_by_one(risk, theta)
        assert without_rule(risk) == []
        assert_close(risk.per_sample_gradients(theta), rows, rtol=1e-10, atol=1e-12)
        assert_close(per_sample_square_norms(risk, theta), rows.square().sum(1), rtol=1e-10, atol=1e-12)


class Positions(nn.Module):
    """A parameter of its own that no layer has, as the positions of a transformer often are."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(torch.sin(x + self.positions)))


def test_what_no_rule_is_for_is_mapped() -> None:
    risk = risk_of(Positions, normal(COUNT, 3, 4))
    theta = theta_of(risk)
    rows = one_by_one(risk, theta)
    assert without_rule(risk) == [0]
    assert_close(risk.per_sample_gradients(theta), rows, rtol=1e-10, atol=1e-12)
    assert_close(per_sample_square_norms(risk, theta), rows.square().sum(1), rtol=1e-10, atol=1e-12)


class InPlace(nn.Module):
    """What a layer puts out is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.layer(x).mul_(2).tanh_()))


class TiedTokens(nn.Module):
    """The table of embeddings is the output layer's weight, which has a bias of its own."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(6, 4, padding_idx), nn.Linear(4, 4), nn.Linear(4, 6)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.head(torch.tanh(self.inner(self.table(tokens)))))


class Placed(nn.Module):
    """Positions are looked up once for all samples, in one of two ways."""

    def __init__(self, *leading: int) -> None:
        super().__init__()
        self.leading = leading
        self.tokens, self.positions = nn.Embedding(6, 4), nn.Embedding(COUNT, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1]).view(*self.leading, -1)
        return torch.tanh(self.head(torch.sin(self.tokens(tokens) + self.positions(places))))


class TiedOfMany(nn.Module):
    """Three linear layers with one weight, of which two have a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)])
        for layer in self.layers:
            layer.weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class TiedElsewhere(TiedTokens):
    """One of those that share a weight is called twice."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + self.head(self.table(tokens).sum(1, keepdim=True))


class Transposed(nn.Module):
    """Places come first, samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(torch.tanh(self.layer(x.transpose(0, 1))).sum(0)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv1d(2, 3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = checkpoint(lambda y: torch.tanh(self.layer(y)).cos(), x, use_reentrant=False)
        return torch.tanh(self.head(inner.mean(2)))


class Unused(nn.Module):
    """A layer that is called for nothing, and two that are frozen in part."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.frozen, self.head = nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(4, 2)
        self.frozen.bias.requires_grad_(False)
        self.head.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        return torch.tanh(self.head(self.frozen(x)))


class ByName(nn.Module):
    """The layer's input is given by name, which hooks do not see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.head(self.layer(input=x)))


class Doubled(nn.Linear):
    """Not a linear layer, though it inherits from one."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input).sin()


def overridden() -> nn.Module:
    """A layer whose forward is another's, as some libraries patch it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    first = model[0]
    first.forward = lambda x: nn.functional.linear(x, first.weight * first.weight, first.bias)  # type: ignore[assignment]
    return model


ODD: dict[str, tuple[Build, Tensor, list[int]]] = {
    "in place": (InPlace, normal(COUNT, 4), []),
    "tied": (TiedTokens, classes(COUNT, 5, of=6), []),
    "tied, padded": (lambda: TiedTokens(padding_idx=2), classes(COUNT, 5, of=6), []),
    "positions without samples": (Placed, classes(COUNT, 5, of=6), [1]),
    "positions of a batch of one": (lambda: Placed(1), classes(COUNT, 3, of=6), []),
    "as many positions as samples": (Placed, classes(COUNT, COUNT, of=6) % 5, [1]),
    "three tied": (TiedOfMany, normal(COUNT, 3, 4), []),
    "tied, one twice": (TiedElsewhere, classes(COUNT, 5, of=6), [0, 3]),
    "samples second": (Transposed, normal(COUNT, COUNT, 4), [0, 1]),
    "checkpointed": (Checkpointed, normal(COUNT, 2, 5), []),
    "unused": (Unused, normal(COUNT, 4), [0, 1]),
    "by name": (ByName, normal(COUNT, 4), [0, 1]),
    "inherited": (lambda: nn.Sequential(Doubled(4, 4), nn.Linear(4, 2), nn.Tanh()), normal(COUNT, 4), [0, 1]),
    "overridden": (overridden, normal(COUNT, 4), [0, 1]),
}


@pytest.mark.parametrize("name", list(ODD))
def test_layers_that_are_used_in_odd_ways(name: str) -> None:
    build, inputs, unruled = ODD[name]
    risk = risk_of(build, inputs)
    theta = theta_of(risk)
    rows = one_by_one(risk, theta)
    assert without_rule(risk) == unruled
    assert_close(risk.per_sample_gradients(theta), rows, rtol=1e-10, atol=1e-12)
    assert_close(per_sample_square_norms(risk, theta), rows.square().sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_common_positions_in_chunks(chunk: int) -> None:
    """Also of one sample, and of as many as there are positions."""
    risk = risk_of(lambda: Placed(1), classes(COUNT, 5, of=6), chunk_size=chunk)
    theta = theta_of(risk)
    wanted = one_by_one(risk, theta)
    assert without_rule(risk) == []
    assert_close(risk.per_sample_gradients(theta), wanted, rtol=1e-10, atol=1e-12)
    assert_close(per_sample_square_norms(risk, theta), wanted.square().sum(1), rtol=1e-10, atol=1e-12)


def test_norms_of_large_layers_do_without_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table that is the head's weight as well, and of a layer at few places."""
    risk = risk_of(lambda: nn.Sequential(TiedTokens(), nn.Linear(6, 40)), classes(COUNT, 2, of=6))
    theta = theta_of(risk)
    wanted = one_by_one(risk, theta).square().sum(1)
    assert_close(per_sample_square_norms(risk, theta), wanted, rtol=1e-10, atol=1e-12)

    def fail(*_arguments: object) -> None:
        raise AssertionError("rows are formed")

    monkeypatch.setattr("noisescape.risk.layer_rules.Embeddings.rows", fail)
    monkeypatch.setattr("noisescape.risk.layer_rules.OuterProducts.rows", fail)
    assert_close(per_sample_square_norms(risk, theta), wanted, rtol=1e-10, atol=1e-12)


class Repeating(nn.Module):
    """A layer that can be told to go over its input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(3, 3), 1

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.layer(x))
        return x


def test_where_a_layer_is_called_otherwise_later_on_gradients_go_one_by_one() -> None:
    model = Repeating().to(F64)
    risk = EmpiricalRisk(model, squared, (normal(COUNT, 3), normal(COUNT, seed=5)))
    theta = risk.parameters()
    assert without_rule(risk) == []
    model.times = 2
    held_to_reverse_mode(risk, theta)


def test_no_hook_stays_on_the_module() -> None:
    build, inputs = LAYERS["one layer after another"]
    torch.manual_seed(3)
    model = build().to(F64)
    risk = EmpiricalRisk(model, squared, (inputs, normal(COUNT, seed=5)))
    per_sample_square_norms(risk, risk.parameters())
    assert not any(module._forward_hooks for module in model.modules())


# ---------------------------------------------------------------------- what the trial does not show


class Scaled(nn.Module):
    """A branch that hardly counts at first; its first layer's output is written to, or has places first."""

    def __init__(self, *, places_first: bool = False) -> None:
        super().__init__()
        self.places_first = places_first
        self.into, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.full((6,), 1e-6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x).tanh()
        inner = h.transpose(0, 1) if self.places_first else h
        branch = self.second(torch.relu_(self.first(inner)))
        return self.head((h + self.scale * (branch.transpose(0, 1) if self.places_first else branch)).mean(1))


class Penalised(nn.Module):
    """Differentiates as it is evaluated, to no effect where it is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = self.net(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return torch.cat([out, (slope.flatten(1).norm(dim=1, keepdim=True) - 2).relu()], 1)


class OtherWeights(nn.Module):
    """The layer is called with weights that are its own only where they are small."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        clipped = {"weight": self.layer.weight.clamp(-1, 1), "bias": self.layer.bias}
        return torch.func.functional_call(self.layer, clipped, (x,)).tanh()


class Branching(nn.Module):
    """Large values take another way, by the same weight, read or called once more."""

    def __init__(self, *, calls: bool = False, by_scale: bool = False) -> None:
        super().__init__()
        self.calls, self.by_scale = calls, by_scale
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.by_scale:
            return (x + self.scale * self.layer(x) if self.scale > 0 else x + self.scale).tanh()
        h = self.layer(x) * self.scale
        big = h.abs().amax(1) > 6
        if big.any():
            other = self.layer(h.tanh()) if self.calls else nn.functional.linear(h.tanh(), self.layer.weight)
            h = torch.where(big[:, None], other, h)
        return h.tanh()


class Sliced(nn.Module):
    """More positions are looked up than there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(6, 4), nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        placed = self.positions(torch.arange(9))[: tokens.shape[1]]
        return torch.tanh(self.head(torch.sin(self.tokens(tokens) + placed)))


class Squeezed(nn.Module):
    """A single sample loses its dimension on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(2, 4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).tanh().mean((2, 3), keepdim=True).squeeze()
        return self.layer(pooled).reshape(len(x), -1)


def clamped() -> nn.Module:
    conv = nn.Conv1d(2, 3, 2)
    conv.forward = lambda x: nn.functional.conv1d(x, conv.weight.clamp(-1, 1), conv.bias)  # type: ignore[method-assign]
    return nn.Sequential(conv, nn.Tanh(), nn.Flatten())


def repadded() -> nn.Module:
    conv = nn.Conv1d(2, 3, 3, padding=1)
    conv.padding = (2,)
    return nn.Sequential(conv, nn.Tanh(), nn.Flatten())


LATER: dict[str, tuple[Build, Tensor, float]] = {
    "written to": (Scaled, normal(COUNT, 5, 4), 1.0),
    "places first": (lambda: Scaled(places_first=True), normal(COUNT, COUNT, 4), 1.0),
    "penalised": (Penalised, normal(COUNT, 3, 4), 4.0),
    "other weights": (OtherWeights, normal(COUNT, 4), 6.0),
    "clamped": (clamped, normal(COUNT, 2, 5), 6.0),
    "repadded": (repadded, normal(COUNT, 2, 5), 2.0),
    "read in a branch": (Branching, normal(COUNT, 4), 5.0),
    "called in a branch": (lambda: Branching(calls=True), normal(COUNT, 4), 5.0),
    "a branch of the parameters": (lambda: Branching(by_scale=True), normal(COUNT, 4), -1.0),
    "sliced": (Sliced, classes(COUNT, 5, of=6), 1.0),
    "squeezed": (Squeezed, normal(COUNT, 2, 4, 4), 1.0),
}


@pytest.mark.parametrize("name", list(LATER))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("chunk", quick([3], [COUNT]))
def test_gradients_are_right_also_where_the_trial_saw_something_else(
    name: str, dtype: torch.dtype, chunk: int
) -> None:
    build, inputs, factor = LATER[name]
    torch.manual_seed(3)
    model = build().to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    risk = EmpiricalRisk(model, squared, (inputs, normal(COUNT, seed=5, dtype=dtype)), chunk_size=chunk)
    theta = risk.parameters()
    held_to_reverse_mode(risk, theta)
    theta = factor * theta
    if isinstance(model, Scaled):
        parts = risk.state_dict(theta) | {"scale": torch.ones(6, dtype=dtype)}
        theta = torch.cat([part.flatten() for part in parts.values()])
    held_to_reverse_mode(risk, theta)
    single = torch.tensor([3])
    assert_close(risk.per_sample_gradients(theta, single), one_by_one(risk, theta)[single], rtol=1e-4, atol=1e-5)


def test_norms_that_cancel_are_not_negative() -> None:
    """Of four samples whose gradients are sums of opposite equal parts."""
    torch.manual_seed(0)
    inputs = torch.randn(60, 3, 16)
    inputs[30:34] = torch.randn(4, 1, 16)
    weights = torch.tensor([0.3, 0.7, -1.0])[None, :, None]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs.tanh() * weights).sum((1, 2)) - targets).square()

    risk = EmpiricalRisk(nn.Linear(16, 16, bias=False), loss, (inputs, torch.randn(60)))
    norms = per_sample_square_norms(risk, risk.parameters())
    assert without_rule(risk) == []
    assert float(norms.min()) >= 0
    assert float(norms[30:34].max()) < 1e-3


def test_inner_products_of_many_places_are_taken_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = risk_of(lambda: nn.Sequential(TiedTokens(), nn.Linear(6, 40)), classes(COUNT, 4, of=6))
    theta = theta_of(risk)
    wanted = one_by_one(risk, theta).square().sum(1)
    monkeypatch.setattr("noisescape.risk.layer_rules.TEMPORARY", 8 * 2 * 4**2 * 2)
    assert_close(per_sample_square_norms(risk, theta), wanted, rtol=1e-10, atol=1e-12)
