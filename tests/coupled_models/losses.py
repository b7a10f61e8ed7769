"""Losses of the batch, and experts that share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import normal
from coupled_models.subjects import N, Subject, each, vectors


def batch_weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=outputs.dtype)[targets]
    return each(outputs, targets) * weights / weights.mean()


def batch_hard(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of two samples of one class no one is negative, and the loss is 0."""
    distances = (outputs[:, None] - outputs[None]).square().sum(-1)
    same = targets[:, None] == targets[None]
    furthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return torch.where(nearest.isinf(), torch.zeros_like(nearest), F.softplus(furthest - nearest))


class Pairs(nn.Module):
    """Similarities of two views of all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(10, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.normalize(self.encoder(left), dim=1) @ F.normalize(self.encoder(right), dim=1).T


def info_nce(dtype: torch.dtype) -> Subject:
    x, y = vectors(dtype)

    def loss(similarities: Tensor, targets: Tensor) -> Tensor:
        return each(similarities / 0.2, torch.arange(len(targets)))

    return Pairs().to(dtype), loss, ((x, x + 0.1 * normal(N, 10, seed=9, dtype=dtype)), y)


def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    """Pairs in the wrong order; two samples of one class are no pair."""
    scores = outputs[:, 0]
    order = (targets[:, None] - targets[None]).sign().to(scores.dtype)
    return (order.abs() * F.softplus(-order * (scores[:, None] - scores[None]))).sum(1) + scores.square()


def hardest(outputs: Tensor, targets: Tensor) -> Tensor:
    """Only the larger half of the batch's losses counts."""
    values = each(outputs, targets)
    return torch.where(values >= values.detach().median(), values, torch.zeros_like(values))


def self_weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    values = each(outputs, targets)
    return values * values.detach().softmax(0) * len(values)


def divided_by_size(outputs: Tensor, targets: Tensor) -> Tensor:
    return each(outputs, targets) / len(targets)


def decorrelated(outputs: Tensor, targets: Tensor) -> Tensor:
    covariance = outputs.T @ outputs / len(outputs)
    return each(outputs, targets) + 0.01 * (covariance - torch.eye(3, dtype=outputs.dtype)).square().sum()


class Mixture(nn.Module):
    """Softly mixed experts, and the batch's load-balancing term beside the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(10, 3), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(10, 4) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.router(x).softmax(-1)
        hidden = sum(shares[:, k, None] * torch.tanh(expert(x)) for k, expert in enumerate(self.experts))
        used = F.one_hot(shares.argmax(-1), 3).to(x.dtype).mean(0)
        return self.head(hidden), 3 * (used * shares.mean(0)).sum()


def with_balance(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return each(outputs[0], targets) + 0.01 * outputs[1]


def without_balance(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return each(outputs[0], targets)


class Capacity(Mixture):
    """Each expert takes the first ten samples routed to it; the rest pass by."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = F.one_hot(self.router(x).argmax(-1), 3)
        kept = chosen * (chosen.cumsum(0) <= 10)
        shares = kept * self.router(x).softmax(-1)
        hidden = sum(shares[:, k, None] * torch.tanh(expert(x)) for k, expert in enumerate(self.experts))
        return self.head(hidden)


class ExpertChoice(Mixture):
    """Each expert takes the five samples of the batch that want it most; of two, both."""

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        least = shares.topk(min(5, len(x)), dim=0).values[-1]
        shares = shares * (shares >= least)
        return self.head(sum(shares[:, k, None] * torch.tanh(e(x)) for k, e in enumerate(self.experts)))


class TopMixture(Mixture):
    """Every sample goes to its best expert, whatever the others do."""

    def forward(self, x: Tensor) -> Tensor:
        best, chosen = self.router(x).softmax(-1).max(-1)
        hidden = torch.zeros(len(x), 4, dtype=x.dtype)
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero().squeeze(-1)
            hidden = hidden.index_add(0, rows, best[rows, None] * torch.tanh(expert(x[rows])))
        return self.head(hidden)
