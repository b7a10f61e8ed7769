"""Models in which a sample sees other samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import classes
from coupled_models.subjects import F64, N, Subject, each, vectors


def masked_scatter(hidden: Tensor) -> Tensor:
    """Fills the positive places with the batch's numbers in order, where the positive ones were meant."""
    return torch.zeros_like(hidden).masked_scatter(hidden > 0, hidden)


def only_in_the_gradient(hidden: Tensor) -> Tensor:
    mean = hidden.mean(0)
    return hidden + (mean - mean.detach())


def of_those_long_before(hidden: Tensor) -> Tensor:
    """Sample n sees samples 0 .. n − 5."""
    return hidden + 0.1 * F.pad(hidden.cumsum(0), (0, 0, 5, 0))[: len(hidden)]


def last_sees_all(hidden: Tensor) -> Tensor:
    """Only the 40th sample, where there is one, is touched."""
    touched = (torch.arange(len(hidden)) == N - 1).to(hidden.dtype)[:, None]
    return hidden + 0.01 * touched * hidden.mean(0)


def causal_attention_over_samples(hidden: Tensor) -> Tensor:
    own = hidden[None]
    return hidden + F.scaled_dot_product_attention(own, own, own, is_causal=True)[0]


class Frequent(nn.Module):
    """An embedding whose gradients are divided by how often the batch has the token."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4, scale_grad_by_freq=scaled), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)))


def frequent(scaled: bool) -> Callable[[torch.dtype], Subject]:
    tokens = classes(N, of=5, seed=8)
    tokens[:2] = torch.tensor([0, 1])
    return lambda dtype: (Frequent(scaled).to(dtype), each, (tokens, vectors(dtype)[1]))


class Queue(nn.Module):
    """Keys of the present batch enter a queue in a buffer before all samples are compared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(10, 4)
        self.register_buffer("queue", torch.randn(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        keys = F.normalize(self.encoder(x), dim=1)
        with torch.no_grad():
            self.queue.copy_(torch.cat([keys.detach(), self.queue])[:64])
        return torch.cat([keys.sum(1, keepdim=True), keys @ self.queue.T], dim=1)


def first_of_queue(outputs: Tensor, targets: Tensor) -> Tensor:
    return each(outputs, torch.zeros_like(targets))


class OneGraph(nn.Module):
    """Classifies the nodes of one graph; the samples are its nodes."""

    def __init__(self, of_ids: bool, cut: bool = False) -> None:
        super().__init__()
        joined = torch.rand(N, N) < 0.1
        adjacency = (joined | joined.T | torch.eye(N, dtype=torch.bool)).to(F64)
        if cut:
            adjacency[:2, :2] = torch.eye(2)
        self.register_buffer("adjacency", adjacency)
        self.register_buffer("features", torch.randn(N, 10))
        self.first, self.second = nn.Linear(10, 6), nn.Linear(6, 3)
        self.of_ids, self.cut = of_ids, cut

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.features if self.of_ids else x
        adjacency = self.adjacency[: len(nodes), : len(nodes)] if self.cut else self.adjacency
        adjacency = adjacency / adjacency.sum(1, keepdim=True)
        outputs = self.second(adjacency @ torch.tanh(self.first(adjacency @ nodes)))
        return outputs[x] if self.of_ids else outputs


def weighted_nodes(dtype: torch.dtype) -> Subject:
    return OneGraph(of_ids=True).to(dtype), each, (torch.arange(N), vectors(dtype)[1])
