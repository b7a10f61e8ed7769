"""Losses as people train with them, with models and targets: N = 9 samples of C = 4 classes, T = 5 tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64, classes, normal

N, C, T = 9, 4, 5
TIGHT = 400
"""Bytes in which the data are not held."""
X = normal(N, 3, seed=1)
WEIGHT = torch.tensor([0.3, 1.7, 0.9, 0.4], dtype=F64)
CLASSES = classes(N, of=C, seed=2)
TOKENS = classes(N, T, of=C, seed=3)
PIXELS = classes(N, 2, 3, of=C, seed=4)
SHARES = normal(N, C, seed=5).softmax(1)
BITS = (normal(N, C, seed=6) > 0).to(F64)
NUMBERS = normal(N, C, seed=7)


def ignoring(targets: Tensor, index: int = -100) -> Tensor:
    """Two fifths of them ignored, of one sample all, of another none."""
    hidden = torch.rand(targets.shape, generator=torch.Generator().manual_seed(8)) < 0.4
    hidden[2], hidden[3] = True, False
    return torch.where(hidden, index, targets)


class Shaped(nn.Module):
    """A linear map to outputs of a shape, and what comes after it."""

    def __init__(self, *shape: int, then: Callable[[Tensor], Any] = lambda out: out) -> None:
        super().__init__()
        self.linear, self.shape, self.then = nn.Linear(3, torch.Size(shape).numel()), shape, then
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=20 + number) / 2)
        self.to(F64)

    def forward(self, x: Tensor) -> Any:
        return self.then(self.linear(x).view(-1, *self.shape))


class Focal(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = F.cross_entropy(input, target, reduction="none")
        values = (1 - (-values).exp()) ** 2 * values
        return values if self.reduction == "none" else values.mean()


class Named(nn.CrossEntropyLoss):
    """A subclass that computes what its base does."""


class Wrapping(nn.Module):
    """Hands its reduction on to the criterion inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=WEIGHT.clone(), reduction="none")
        self.reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values = self.inner(outputs, targets)
        return values if self.reduction == "none" else values.mean()


class Delegating(nn.Module):
    """Its reduction is that of the criterion inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss()

    @property
    def reduction(self) -> str:
        return self.inner.reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        self.inner.reduction = value

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.inner(outputs, targets)


def gaussian(outputs: tuple[Tensor, Tensor], targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.gaussian_nll_loss(outputs[0], targets, outputs[1], reduction=reduction)


def connectionist(outputs: Tensor, targets: dict[str, Tensor], reduction: str = "sum") -> Tensor:
    return F.ctc_loss(outputs.transpose(0, 1), targets["labels"], targets["of"], targets["to"], reduction=reduction)


def two_heads(out: Tensor) -> tuple[Tensor, Tensor]:
    return out[:, :2], out[:, 2:].exp()


@dataclass(frozen=True)
class Trained:
    """A model, the criterion that it is trained by and targets; ``scale``: N where the criterion is a sum."""

    model: Callable[[], nn.Module]
    criterion: Any
    targets: Any
    scale: float = 1.0


CE = nn.CrossEntropyLoss
LOG = functools.partial(F.log_softmax, dim=1)
TRAINED: dict[str, Trained] = {
    "cross-entropy": Trained(lambda: Shaped(C), CE(), CLASSES),
    "cross-entropy, function": Trained(lambda: Shaped(C, T), F.cross_entropy, ignoring(TOKENS)),
    "class weights": Trained(lambda: Shaped(C), CE(weight=WEIGHT), CLASSES),
    "class weights and smoothing": Trained(lambda: Shaped(C), CE(weight=WEIGHT, label_smoothing=0.2), CLASSES),
    "ignored classes": Trained(lambda: Shaped(C), CE(ignore_index=1), CLASSES),
    "ignored tokens": Trained(lambda: Shaped(C, T), CE(), ignoring(TOKENS)),
    "smoothed tokens": Trained(lambda: Shaped(C, T), CE(label_smoothing=0.3), ignoring(TOKENS)),
    "an index of one's own": Trained(
        lambda: Shaped(C, T), CE(weight=WEIGHT, ignore_index=0, label_smoothing=0.1), ignoring(TOKENS, 0)
    ),
    "an index past the classes": Trained(lambda: Shaped(C, T), CE(WEIGHT, ignore_index=255), ignoring(TOKENS, 255)),
    "pixels": Trained(lambda: Shaped(C, 2, 3), CE(weight=WEIGHT), ignoring(PIXELS)),
    "partial": Trained(
        lambda: Shaped(C, T), functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=0), ignoring(TOKENS, 0)
    ),
    "partial of a sum": Trained(
        lambda: Shaped(C, T), functools.partial(F.cross_entropy, reduction="sum"), ignoring(TOKENS), N
    ),
    "log-likelihood": Trained(lambda: Shaped(C, T, then=LOG), nn.NLLLoss(weight=WEIGHT), ignoring(TOKENS)),
    "log-likelihood, function": Trained(lambda: Shaped(C, then=LOG), F.nll_loss, CLASSES),
    "probabilities of classes": Trained(lambda: Shaped(C), CE(weight=WEIGHT, label_smoothing=0.1), SHARES),
    "a sum": Trained(lambda: Shaped(C, T), CE(weight=WEIGHT, reduction="sum"), ignoring(TOKENS), N),
    "a subclass that only names it": Trained(lambda: Shaped(C, T), Named(WEIGHT, ignore_index=0), TOKENS),
    "focal": Trained(lambda: Shaped(C), Focal(), CLASSES),
    "wrapping": Trained(lambda: Shaped(C), Wrapping(), CLASSES),
    "delegating": Trained(lambda: Shaped(C), Delegating(), CLASSES),
    "divergence": Trained(lambda: Shaped(C, then=LOG), nn.KLDivLoss(reduction="batchmean"), SHARES),
    "binary with weights": Trained(
        lambda: Shaped(C), nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=2 * WEIGHT), BITS
    ),
    "binary of probabilities": Trained(lambda: Shaped(C, then=torch.sigmoid), nn.BCELoss(weight=WEIGHT), BITS),
    "squares": Trained(lambda: Shaped(C), nn.MSELoss(), NUMBERS),
    "sum of squares": Trained(lambda: Shaped(C), nn.MSELoss(reduction="sum"), NUMBERS, N),
    "Huber": Trained(lambda: Shaped(C), nn.HuberLoss(delta=0.7), NUMBERS),
    "Poisson": Trained(lambda: Shaped(C), nn.PoissonNLLLoss(), BITS),
    "several labels": Trained(lambda: Shaped(C), nn.MultiLabelSoftMarginLoss(weight=WEIGHT), BITS),
    "Gaussian with its variance": Trained(lambda: Shaped(C, then=two_heads), gaussian, NUMBERS[:, :2]),
    "connectionist temporal": Trained(
        lambda: Shaped(6, C, then=functools.partial(F.log_softmax, dim=-1)),
        connectionist,
        {
            "labels": classes(N, 3, of=C - 1, seed=9) + 1,
            "of": torch.full((N,), 6),
            "to": classes(N, of=3, seed=10) + 1,
        },
        N,
    ),
}


def cut(tree: Any, *bounds: int) -> Any:
    if isinstance(tree, dict):
        return {name: cut(value, *bounds) for name, value in tree.items()}
    return tree[slice(*bounds)]


def plain_gradient(model: nn.Module, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, [*model.parameters()], materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found])
