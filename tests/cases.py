"""Small models, data and closed-form landscapes, each with losses written a second time by hand.

The reference never calls the package: parameters are cut from θ by a plain loop, the loss is a formula, and
derivatives come from ``torch.autograd.functional`` one row at a time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from noisescape.linops import FunctionOperator
from noisescape.risk import EmpiricalRisk

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64).to(dtype)


def classes(*shape: int, of: int, seed: int = 0) -> Tensor:
    return torch.randint(0, of, shape, generator=generator(seed))


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9, floor: float = 1e-3) -> None:
    """Equal to a relative error of the largest entry, or of the floor where all are smaller."""
    scale = max(float(expected.abs().max()), floor)
    assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


# ---------------------------------------------------------------------- losses, written out


def cross_entropy_by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    picked = outputs.gather(1, targets.unsqueeze(1)).squeeze(1)
    values = torch.logsumexp(outputs, 1) - picked
    return values.reshape(len(values), -1).mean(1)


def squared_by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).reshape(len(outputs), -1).mean(1)


def logistic_by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    return (torch.log1p(torch.exp(outputs)) - targets * outputs).reshape(len(outputs), -1).mean(1)


# ---------------------------------------------------------------------- modules


class Tied(nn.Module):
    """A linear autoencoder whose decoder is its encoder's transpose... as one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.bias = nn.Parameter(torch.linspace(-0.3, 0.4, 4))
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x) + self.bias))


class Tagger(nn.Module):
    """A class for every token: outputs (n, C, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).movedim(-1, 1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_left, self.of_right = nn.Linear(2, 3), nn.Linear(3, 3, bias=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.tanh(self.of_left(left)) * self.of_right(right)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            4, 2, dim_feedforward=4, dropout=0.0, batch_first=True, activation="gelu"
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class _Cubed(torch.autograd.Function):
    """x³, twice differentiable in reverse mode, without a forward derivative or a vmap rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream * 3 * x**2


def cubed(x: Tensor) -> Tensor:
    return _Cubed.apply(x)


class Cubic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cubed(x)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def _frozen_first_layer() -> nn.Module:
    model = _mlp(3, 4, 3)
    model[0].requires_grad_(False)
    return model


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def _batch_norm_in_eval() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    model[1].running_mean.copy_(torch.linspace(-1, 1, 4))
    model[1].running_var.copy_(torch.linspace(0.5, 2, 4))
    return model.eval()


def _cubic() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Cubic(), nn.Linear(4, 3))


# ---------------------------------------------------------------------- cases


@dataclass
class Case:
    """A model, its loss and its data, with the reference that everything is held against."""

    build: Callable[[], nn.Module]
    inputs: Any
    targets: Tensor
    loss: Any = nn.functional.cross_entropy
    by_hand: Callable[[Tensor, Tensor], Tensor] = cross_entropy_by_hand
    maps_replicas: bool = True
    memo: dict[str, Tensor] = field(default_factory=dict)

    def model(self, dtype: torch.dtype = F64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return self.build().to(dtype)

    @property
    def data(self) -> tuple[Any, Tensor]:
        return self.inputs, self.targets

    @property
    def count(self) -> int:
        return len(self.targets)

    def risk(self, dtype: torch.dtype = F64, *, device: str = "cpu", **options: Any) -> EmpiricalRisk:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

        data = torch.utils._pytree.tree_map(cast, self.data)
        return EmpiricalRisk(self.model(dtype).to(device), self.loss, data, **options)

    @functools.cached_property
    def theta(self) -> Tensor:
        """Away from the module's own parameters, so that using those by mistake shows."""
        own = torch.cat([p.detach().flatten() for p in self.model().parameters() if p.requires_grad])
        return own + 0.3 * normal(len(own), seed=11)

    @functools.cached_property
    def _reference_model(self) -> nn.Module:
        return copy.deepcopy(self.model())

    def outputs(self, theta: Tensor, inputs: Any) -> Tensor:
        parameters, start = {}, 0
        for name, parameter in self._reference_model.named_parameters():
            if parameter.requires_grad:
                stop = start + parameter.numel()
                parameters[name] = theta[start:stop].reshape(parameter.shape)
                start = stop
        assert start == len(theta)
        args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        keywords = inputs if isinstance(inputs, dict) else {}
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(self._reference_model, parameters, args, keywords)

    def losses(self, theta: Tensor) -> Tensor:
        return self.by_hand(self.outputs(theta, self.inputs), self.targets)

    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self.memo:
            self.memo[name] = compute().detach()
        return self.memo[name]

    def gradients(self) -> Tensor:
        """G at θ, (N, D)."""
        return self._once("gradients", lambda: jacobian(self.losses, self.theta))

    def hessian(self) -> Tensor:
        return self._once("hessian", lambda: hessian(lambda theta: self.losses(theta).mean(), self.theta))

    def output_jacobians(self) -> Tensor:
        """J at θ, (N, F, D), outputs flattened."""

        def flat(theta: Tensor) -> Tensor:
            return self.outputs(theta, self.inputs).flatten(1)

        return self._once("output jacobians", lambda: jacobian(flat, self.theta))

    def gauss_newton(self) -> Tensor:
        """(1/N) Σ JᵀQJ, one sample after the other."""

        def compute() -> Tensor:
            outputs = self.outputs(self.theta, self.inputs).detach()
            total = torch.zeros(len(self.theta), len(self.theta), dtype=F64)
            for n, jac in enumerate(self.output_jacobians()):
                shape = outputs[n].shape

                def loss(flat: Tensor, n: int = n, shape: torch.Size = shape) -> Tensor:
                    return self.by_hand(flat.reshape(1, *shape), self.targets[n : n + 1])[0]

                total += jac.T @ hessian(loss, outputs[n].flatten()) @ jac
            return total / self.count

        return self._once("gauss newton", compute)

    def covariance(self) -> Tensor:
        """C: centred, divided by N, as an explicit sum."""
        rows = self.gradients()
        mean = sum(rows) / len(rows)
        return sum(torch.outer(row - mean, row - mean) for row in rows) / len(rows)


_IMAGES = normal(9, 1, 6, 6, seed=4)
_SEQUENCES = normal(7, 3, 2, seed=6)

CASES: dict[str, Case] = {
    "mlp cross-entropy": Case(lambda: _mlp(3, 4, 3), normal(11, 3, seed=1), classes(11, of=3, seed=2)),
    "mlp squared": Case(
        lambda: _mlp(3, 4, 2), normal(11, 3, seed=1), normal(11, 2, seed=2), nn.MSELoss(), squared_by_hand
    ),
    "logistic": Case(
        lambda: _mlp(3, 4, 1),
        normal(11, 3, seed=1),
        classes(11, 1, of=2, seed=2).to(F64),
        nn.BCEWithLogitsLoss(),
        logistic_by_hand,
    ),
    "conv": Case(_conv, _IMAGES, classes(9, of=3, seed=5), nn.CrossEntropyLoss()),
    "frozen layer": Case(_frozen_first_layer, normal(9, 3, seed=1), classes(9, of=3, seed=2)),
    "tied weights": Case(Tied, normal(9, 4, seed=1), normal(9, 4, seed=2), nn.functional.mse_loss, squared_by_hand),
    "batch norm in eval": Case(_batch_norm_in_eval, normal(9, 3, seed=1), classes(9, of=3, seed=2)),
    "sequence": Case(Tagger, classes(7, 4, of=5, seed=1), classes(7, 4, of=4, seed=2)),
    "tuple inputs": Case(TwoInputs, (normal(9, 2, seed=1), normal(9, 3, seed=3)), classes(9, of=3, seed=2)),
    "dict inputs": Case(
        TwoInputs, {"right": normal(9, 3, seed=3), "left": normal(9, 2, seed=1)}, classes(9, of=3, seed=2)
    ),
    "lstm": Case(Recurrent, _SEQUENCES, classes(7, of=3, seed=5)),
    "attention": Case(Attentive, normal(7, 3, 4, seed=6), classes(7, of=3, seed=5)),
    "no forward mode": Case(_cubic, 0.7 * normal(9, 3, seed=1), classes(9, of=3, seed=2)),
}


WIDER = Case(
    lambda: nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 3)),
    normal(120, 10, seed=1),
    classes(120, of=3, seed=2),
)
"""171 parameters on 120 samples: too large for exact sums to be cheapest everywhere."""


class Batches:
    """A re-iterable of batches of the given sizes."""

    def __init__(self, case: Case, sizes: list[int]) -> None:
        self.case, self.sizes = case, sizes

    def __iter__(self):
        start = 0
        for size in self.sizes:
            cut = slice(start, start + size)
            inputs = torch.utils._pytree.tree_map(lambda t, cut=cut: t[cut], self.case.inputs)
            yield inputs, self.case.targets[cut]
            start += size


# ---------------------------------------------------------------------- closed forms


POINTS = normal(6, 3, seed=21)
SCALES = torch.tensor([1.0, 4.0, 0.5], dtype=F64)


def bowl_of_sample(theta: Tensor, point: Tensor) -> Tensor:
    """ℓ(θ; p) = Σ_i s_i (θ_i − p_i)² + cos(Σ_i θ_i p_i), broadcasting."""
    scales = SCALES.to(theta.dtype)
    return (scales * (theta - point) ** 2).sum(-1) + torch.cos((theta * point).sum(-1))


def bowl(theta: Tensor) -> Tensor:
    """All its losses: (D,) → (N,)."""
    return bowl_of_sample(theta, POINTS.to(theta.dtype))


def bowl_gradients(theta: Tensor) -> Tensor:
    """Its G at a single θ, (N, D), by hand."""
    return 2 * SCALES * (theta - POINTS) - torch.sin(POINTS @ theta)[:, None] * POINTS


def bowl_hessian(theta: Tensor) -> Tensor:
    """Its H at a single θ, by hand."""
    of_cosines = sum(torch.cos(p @ theta) * torch.outer(p, p) for p in POINTS) / len(POINTS)
    return torch.diag(2 * SCALES) - of_cosines


def bowl_risk(kind: str = "of a sample") -> EmpiricalRisk:
    start = torch.zeros(3, dtype=F64)
    if kind == "of all samples":
        return EmpiricalRisk.from_losses(bowl, start)
    return EmpiricalRisk.from_sample_loss(bowl_of_sample, POINTS, start)


# ---------------------------------------------------------------------- matrices


def symmetric(size: int, spectrum: Tensor, seed: int = 0) -> Tensor:
    """A matrix of the given spectrum in random axes."""
    axes = torch.linalg.qr(normal(size, size, seed=seed)).Q
    matrix = axes * spectrum.to(F64) @ axes.T
    return (matrix + matrix.T) / 2


class CountedOperator(FunctionOperator):
    """A matrix that is known by its products only, and keeps how many columns each product had."""

    def __init__(self, matrix: Tensor) -> None:
        def multiply(block: Tensor) -> Tensor:
            self.columns.append(block.shape[1])
            return matrix @ block

        self.columns: list[int] = []
        super().__init__(multiply, len(matrix), dtype=matrix.dtype, device="cpu")
