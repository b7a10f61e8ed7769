"""Models and losses that may look coupled and are sound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cases import normal
from coupled_models.subjects import Disturbed, N, Subject, each, vectors


def deep() -> nn.Module:
    layers = [layer for _ in range(12) for layer in (nn.Linear(10, 10), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(10, 3))


def fitted(dtype: torch.dtype) -> Subject:
    """A model that fits its targets to about 3·10⁻⁴, so that losses are about 10⁻⁷."""
    model, (x, _) = Disturbed().to(dtype), vectors(dtype)
    targets = (model(x) + 3e-4 * normal(N, 3, seed=7, dtype=dtype)).detach()
    return model, lambda outputs, wanted: (outputs - wanted).square().mean(1), (x, targets)


def same_noise_for_all(hidden: Tensor) -> Tensor:
    noise = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(0), dtype=hidden.dtype)
    return hidden + 0.1 * noise


def large_logits() -> nn.Module:
    model = Disturbed()
    with torch.no_grad():
        model.second.weight.mul_(1e4)
    return model


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.unflatten(1, (5, 2)))[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.inward, self.head = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inward(x.unflatten(1, (5, 2)))).mean(1))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def dropout_in_eval() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).eval()


def wide(dtype: torch.dtype) -> Subject:
    """Sums of two thousand terms far larger than they come to: much rounding in single precision."""
    model = nn.Sequential(nn.Linear(2000, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    return model, each, (3 * normal(N, 2000, seed=3, dtype=dtype), vectors(dtype)[1])
