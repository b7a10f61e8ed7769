"""Modules that hold more than parameters, with a loss and data each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from architectures.inputs import signals, tokens, vectors
from architectures.layers import Sequential, new_weight_norm, old_weight_norm, spectral_norm
from architectures.libraries import gpt2_lora, of_token_logits
from architectures.parameters import Checkpointed, TiedEmbeddings, pruned, shared_submodule
from architectures.reference import seeded
from cases import F64, classes, normal

Subject = tuple[nn.Module, Callable[[Any, Any], Tensor], tuple[Any, Any]]


class Counting(nn.Module):
    """Keeps a count, a list, a dict, a buffer and a plain tensor, all changed by each forward pass."""

    def __init__(self, *kept: str) -> None:
        super().__init__()
        self.kept = kept
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.calls, self.seen, self.by_size = 0, [], {}
        self.register_buffer("mean", torch.zeros(5, dtype=F64))
        self.total = torch.zeros(5, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if "count" in self.kept:
            self.calls += 1
        if "list" in self.kept:
            self.seen.append(hidden.detach())
        if "dict" in self.kept:
            self.by_size[len(x)] = hidden.detach()
        if "buffer" in self.kept:
            self.mean.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        if "tensor" in self.kept:
            self.total += hidden.detach().sum(0)
        return self.second(hidden)


def hooked(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    calls: list[str] = []
    if kind == "forward":
        model[0].register_forward_hook(lambda module, inputs, output: calls.append("forward"))
        model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif kind == "pre":
        model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    elif kind == "backward":
        model[2].register_full_backward_hook(lambda module, inward, outward: None)
    else:
        model[0].weight.register_hook(lambda gradient: gradient)
    return model


def attentive() -> nn.Module:
    body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 4), body, nn.Flatten(), nn.Linear(8, 3))


def batch_norm_in_eval() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).to(F64).eval()


def frozen_with_gradients() -> nn.Module:
    """In the midst of training: gradients accumulated, some parameters frozen, one part in eval mode."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5).eval(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).to(
        F64
    )
    model[2].requires_grad_(False)
    model(vectors()[0]).sum().backward()
    return model


def distributed() -> nn.Module:
    return nn.parallel.DistributedDataParallel(batch_norm_in_eval()).eval()


def _of(model: Callable[[], nn.Module], data: Callable[[], Any] = vectors, loss: Any = F.cross_entropy) -> Any:
    def build() -> Subject:
        with seeded():
            return model().to(F64), loss, data()

    return build


SEQUENCES = (normal(6, 4, 3, seed=6), classes(6, of=3, seed=5))
QUICK = (
    *("in the midst of training", "batch norm in eval", "tied parameter", "spectral norm, old", "checkpointed"),
    *("full backward hook", "changes a buffer in eval"),
)
"""One of each way to hold state; the others are slow."""
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "attention": _of(attentive),
    "in the midst of training": _of(frozen_with_gradients),
    "batch norm in eval": _of(batch_norm_in_eval),
    "shared submodule": _of(shared_submodule),
    "tied parameter": _of(TiedEmbeddings, lambda: tokens(7)),
    "weight norm, old": _of(old_weight_norm, signals),
    "weight norm, new": _of(new_weight_norm, signals),
    "spectral norm, old": _of(lambda: spectral_norm(nn.utils.spectral_norm)),
    "spectral norm, new": _of(lambda: spectral_norm(parametrizations.spectral_norm)),
    "pruned": _of(pruned),
    "lstm": _of(lambda: Sequential(nn.LSTM), lambda: SEQUENCES),
    "rnn": _of(lambda: Sequential(nn.RNN), lambda: SEQUENCES),
    "checkpointed": _of(Checkpointed),
    "lora by peft": _of(gpt2_lora, tokens, of_token_logits),
    "forward hooks": _of(lambda: hooked("forward")),
    "forward pre-hook": _of(lambda: hooked("pre")),
    "full backward hook": _of(lambda: hooked("backward")),
    "hook of a parameter": _of(lambda: hooked("parameter")),
    "counts its calls": _of(lambda: Counting("count")),
    "keeps a list": _of(lambda: Counting("list")),
    "keeps a dict": _of(lambda: Counting("dict")),
    "changes a buffer in eval": _of(lambda: Counting("buffer").eval()),
    "changes a plain tensor": _of(lambda: Counting("tensor")),
    "DataParallel": _of(lambda: nn.DataParallel(batch_norm_in_eval())),
    "DistributedDataParallel": _of(distributed),
}
