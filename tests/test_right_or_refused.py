"""Ways in which a number could be wrong without a word: each is right, or refused by name."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, classes, normal

CE = nn.functional.cross_entropy
X, Y = normal(60, 6, seed=1), classes(60, of=3, seed=2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(F64)


def flat_gradient(model: nn.Module, value: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


# ---------------------------------------------------------------------- losses that look at parameters


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
        torch.testing.assert_close(risk.directional_derivatives(theta, theta), rows @ theta)


@pytest.mark.parametrize("strength", [1e-7, 1e-3])
def test_a_weight_read_outside_its_layer_counts_however_little(strength: float) -> None:
    """Whether factors are kept of a layer's gradients is a question of structure, not of size."""
    model = network().float()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return CE(outputs, targets, reduction="none") + strength * sum(p.square().sum() for p in model.parameters())

    risk = ns.EmpiricalRisk(model, loss, (X.float(), Y))
    assert risk.gradient_width == risk.dimension
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


# ---------------------------------------------------------------------- backward passes


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


class _Once(torch.autograd.Function):
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
        kind = _Once if self.how == "once" else _Hidden
        return self.layers[2](kind.apply(self.layers[0](x), self.how))


@pytest.mark.parametrize("how", ["numpy", "no_grad", "once"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("budget", [None, 20_000])
def test_first_derivatives_need_no_second_ones(how: str, dtype: torch.dtype, budget: int | None) -> None:
    """Gv by two reverse passes would lack what a backward pass hides; then it comes from single gradients."""
    model = Opaque(how).to(dtype)
    risk = ns.EmpiricalRisk(model, CE, (X.to(dtype), Y), memory_budget=budget)
    theta = risk.parameters()
    block = normal(len(theta), 3, seed=4).to(dtype)
    rows = torch.stack([flat_gradient(model, CE(model(X[n : n + 1].to(dtype)), Y[n : n + 1])) for n in range(60)])
    centred = rows - rows.mean(0)
    torch.testing.assert_close(risk.directional_derivatives(theta, block), rows @ block)
    torch.testing.assert_close(risk.directional_derivatives(theta, block[:, 0]), rows @ block[:, 0])
    torch.testing.assert_close(
        risk.noise_covariance(theta, 5) @ block, centred.T @ (centred @ block) / 300, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ValueError, match="differentiable once"):
        risk.gauss_newton(theta) @ block
    with pytest.raises(ValueError, match="finite_difference_hessian"):
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


# ---------------------------------------------------------------------- models that change, or remember


@pytest.mark.parametrize("change", ["replaced", "appended", "parameter added"])
def test_a_structure_that_changed_since_is_refused(change: str) -> None:
    model = network()
    risk = ns.EmpiricalRisk(model, CE, (X, Y))
    theta = risk.parameters()
    if change == "replaced":
        model[0] = nn.Linear(6, 8).to(F64)
    elif change == "appended":
        model.append(nn.Linear(3, 3).to(F64))
    else:
        model[0].extra = nn.Parameter(torch.zeros(2, dtype=F64))
    with pytest.raises(ValueError, match="structure has changed"):
        risk.loss(theta)


class _Box:
    """State in an object of somebody's own."""


class Remembering(nn.Module):
    """State in every place a module can keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.target = [network().requires_grad_(False)]
        self.listed, self.named = [torch.zeros(3, dtype=F64)], {"mean": torch.zeros(3, dtype=F64)}
        self.paired = (torch.zeros(3, dtype=F64), 0)
        self.array, self.box = np.zeros(3), _Box()
        self.box.count = 0

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layers(x) + self.target[0](x)
        with torch.no_grad():
            for held in (self.listed[0], self.named["mean"], self.paired[0]):
                held.mul_(0.9).add_(1.0)
            self.array += 1
            self.box.last = outputs
            self.box.count += 1
        return outputs


def test_state_is_put_back_wherever_it_is_kept() -> None:
    model = Remembering()
    risk = ns.EmpiricalRisk(model, CE, (X, Y))
    theta = risk.parameters()
    first = risk.loss(theta)
    risk.per_sample_gradients(theta)
    risk.hessian(theta) @ torch.stack([theta, theta], dim=1)
    risk.losses(torch.stack([theta, theta]))
    gc.collect()
    for held in (model.listed[0], model.named["mean"], model.paired[0]):
        assert torch.equal(held, torch.zeros(3, dtype=F64))
    assert not model.array.any()
    assert vars(model.box) == {"count": 0}
    assert torch.equal(risk.loss(theta), first)


# ---------------------------------------------------------------------- rare samples, small batches


class Switching(nn.Module):
    """Draws noise, or adds what other samples are, only where a rare token stands."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens).mean(1)
        rare = (tokens == 17).any(1)
        if bool(rare.any()):
            hidden = hidden + torch.randn_like(hidden) * rare[:, None]
        return self.head(hidden)


def test_randomness_of_one_sample_in_six_thousand_is_refused() -> None:
    tokens = 18 + classes(6000, 6, of=32, seed=1)
    tokens[4321, 2] = 17
    model, state = Switching(), torch.get_rng_state()
    with pytest.raises(ns.BatchCouplingError, match="draws random numbers"):
        ns.EmpiricalRisk(model, CE, (tokens, classes(6000, of=3, seed=2)), chunk_size=500)
    assert torch.equal(torch.get_rng_state(), state)


class Routed(nn.Module):
    """Top-1 experts that drop what exceeds their share of the batch times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.experts, self.factor = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 6, 3)), factor

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        value, expert = gates.max(-1)
        capacity = max(1, int(np.ceil(self.factor * len(x) / 4)))
        place = nn.functional.one_hot(expert, 4).cumsum(0).gather(1, expert[:, None])[:, 0]
        kept = (place <= capacity).to(x)
        return torch.einsum("ni,nio->no", x, self.experts[expert]) * (value * kept)[:, None]


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 3.0])
def test_capacity_that_only_alike_samples_exceed_is_refused(factor: float) -> None:
    with pytest.raises(ns.BatchCouplingError, match="influence each other"):
        ns.EmpiricalRisk(Routed(factor).to(F64), CE, (X, Y))


def test_generators_are_found_where_code_can_reach_them() -> None:
    generator = np.random.default_rng(0)
    model = network()

    def flipped(outputs: Tensor, targets: Tensor) -> Tensor:
        flip = torch.from_numpy(generator.random(len(targets)) < 1e-9)
        return CE(outputs, torch.where(flip, (targets + 1) % 3, targets), reduction="none")

    before = generator.bit_generator.state
    with pytest.raises(ns.BatchCouplingError, match="draws random numbers"):
        ns.EmpiricalRisk(model, flipped, (X, Y))
    assert generator.bit_generator.state == before


def test_replicas_with_batches_of_their_own_where_control_flow_reads_the_data() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) if float(x.abs().max()) > 0.1 else self.layers(2 * x)

    risk = ns.EmpiricalRisk(Branching(), CE, (X, Y))
    theta = risk.parameters()
    both = torch.stack([theta, 1.1 * theta])
    indices = torch.tensor([[0, 5, 5], [7, 1, 2]])
    wanted = torch.stack([risk.minibatch_gradient(*pair) for pair in zip(both, indices, strict=True)])
    torch.testing.assert_close(risk.minibatch_gradient(both, indices), wanted)
    run = ns.simulate(risk, ns.SGD(4), theta, lr=0.1, steps=2, replicas=2, progress=False)
    assert not run.diverged.any()


def test_gradient_hooks_of_parameters_are_told() -> None:
    model = network()
    model[0].weight.register_hook(lambda g: g * 0)
    with pytest.warns(UserWarning, match=r"gradient hooks \(0\.weight\)"):
        ns.EmpiricalRisk(model, CE, (X, Y))
