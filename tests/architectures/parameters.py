"""Parameters in unusual places: shared, tied, frozen, pruned, of low rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from cases import cubed


class TiedEmbeddings(nn.Module):
    """One parameter under two names: a language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(7, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens)))).movedim(-1, 1)


def shared_submodule() -> nn.Module:
    norm = nn.LayerNorm(4)
    return nn.Sequential(norm, nn.Linear(4, 4), norm, nn.Tanh(), nn.Linear(4, 3))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_unstructured(model[2], "weight", amount=0.3)
    return model


def frozen_backbone() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    backbone.requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))


class LowRank(nn.Module):
    """W + BA over a frozen W; B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 2)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def low_rank() -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(4, 8)), nn.Tanh(), LowRank(nn.Linear(8, 3)))


class Spectral(nn.Module):
    """A layer in Fourier space whose complex weights are made of real parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(2, 2, 4, 2) / 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x, norm="ortho")
        mixed = torch.einsum("nik,iok->nok", waves, torch.view_as_complex(self.weight))
        return self.head(torch.tanh(torch.fft.irfft(mixed, n=6, norm="ortho")).flatten(1))


class Cubic(nn.Module):
    """An activation of one's own, a Function without forward mode and without a rule for vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(cubed(self.first(x)))
