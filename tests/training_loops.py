"""Small training loops in which the pieces of every step are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from noisescape.training.noise_scale import Weights, moments, smooth

FIGURES = ("trace_covariance", "squared_gradient_norm")

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused-adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}

Pieces = Sequence[tuple[Tensor, Tensor]]


def small_net(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2)).double()


def micro_batches(steps: int, pieces: int, size: int, seed: int = 0) -> list[list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(seed)
    return [
        [
            (
                torch.randn(size, 3, generator=draw, dtype=torch.float64),
                torch.randint(0, 2, (size,), generator=draw),
            )
            for _ in range(pieces)
        ]
        for _ in range(steps)
    ]


def piece_gradients(model: nn.Module, pieces: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(K, D): the mean gradient of every piece, by autograd alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for inputs, targets in pieces:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        rows.append(torch.cat([gradient.flatten() for gradient in filled]))
    return torch.stack(rows)


def textbook(gradients: Tensor, size: int) -> tuple[float, float]:
    """(Tr Ĉ, ‖ĝ‖²) of K piece gradients of ``size`` samples, with V = Σ‖G_k − Ḡ‖²/(K − 1)."""
    mean = gradients.mean(0)
    spread = (gradients - mean).square().sum() / (len(gradients) - 1)
    return float(size * spread), float(mean.square().sum() - spread / len(gradients))


def of_weighted(gradients: Tensor, sizes: Sequence[int], weights: Sequence[float]) -> tuple[float, float]:
    """The same of unequal pieces."""
    parts = gradients * torch.tensor(weights, dtype=gradients.dtype)[:, None]
    found = moments(
        parts.square().sum().numpy(), parts.sum(0).square().sum().numpy(), Weights.of(list(sizes), list(weights))
    )
    return float(found[0]), float(found[1])


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs), targets)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Sequence[Pieces],
    *,
    monitor: ns.Monitor | None = None,
    divide: bool = True,
    reference: Callable[[Pieces], tuple[float, float]] | None = None,
    spoil: Callable[[nn.Module], object] | None = None,
    zero: str = "none",
) -> tuple[np.ndarray, Mapping[str, float]]:
    """A plain loop; what the monitor should have found at each step, and its last report."""
    wanted: list[tuple[float, float]] = []
    report: Mapping[str, float] = {}
    for pieces in steps:
        if reference is not None:
            wanted.append(reference(pieces))
        optimizer.zero_grad(set_to_none=zero == "none")
        for inputs, targets in pieces:
            loss = loss_of(model, inputs, targets)
            (loss / len(pieces) if divide else loss).backward()
        if spoil is not None:
            spoil(model)
        optimizer.step()
        if monitor is not None:
            report = monitor.step() or report
    return np.array(wanted), report


def assert_found(report: Mapping[str, float], wanted: np.ndarray, place: str = "noise/") -> None:
    expected = smooth(wanted[:, 0], wanted[:, 1])
    assert report[f"{place}trace_covariance"] == pytest.approx(expected.trace, rel=1e-9)
    assert report[f"{place}squared_gradient_norm"] == pytest.approx(expected.squared_norm, rel=1e-9)
    assert report[f"{place}trace_covariance_stderr"] == pytest.approx(expected.trace_stderr, rel=1e-6)
    assert report[f"{place}scale"] == pytest.approx(expected.scale, rel=1e-6)
    assert report[f"{place}scale_low"] == pytest.approx(expected.scale_low, rel=1e-6)


def textbook_of(model: nn.Module, size: int) -> Callable[[Pieces], tuple[float, float]]:
    return lambda pieces: textbook(piece_gradients(model, pieces), size)
