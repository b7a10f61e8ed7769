"""Text and attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


class Text(nn.Module):
    """The mean of the embeddings of the tokens that are there, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != 0).unsqueeze(-1)
        mean = (self.embedding(tokens) * there).sum(1) / there.sum(1)
        return self.head(torch.tanh(mean))


class PaddedText(Text):
    """The padding's embedding counts, though it is never learned."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens)).mean(1))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 4, mode="mean"), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(tokens)))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        mixed, _ = self.attention(x, x, x, key_padding_mask=key_padding_mask, need_weights=False)
        return self.head(mixed.mean(1) if scale is None else mixed.mean(1) * scale)


class OwnKernel(nn.Module):
    """Attention under a choice of kernels made inside the forward pass."""

    def __init__(self, *backends: SDPBackend) -> None:
        super().__init__()
        self.backends = list(backends)
        self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        with sdpa_kernel(self.backends):
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(left)) * self.right(right))
