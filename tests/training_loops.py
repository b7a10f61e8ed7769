"""Small training loops in which the pieces of every step are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noisescape.training.noise_scale import Weights, moments


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
