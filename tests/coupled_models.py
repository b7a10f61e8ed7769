"""Models and losses without a per-sample loss, and some that look like it but have one. N = 40 throughout.

Of most, a batch of the first two samples shows nothing: they are of one class, or the coupling starts later.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import classes, normal

N = 40
F32, F64 = torch.float32, torch.float64

Subject = tuple[nn.Module, Callable[[Any, Any], Tensor], tuple[Any, Any]]


@dataclass(frozen=True)
class Entry:
    """A model, a loss and data in a given precision.

    Attributes:
        build: dtype ↦ (model, loss, data).
        hidden: a batch of the first two samples gives what each gives alone.
        random: two evaluations differ.
        runs: batches of any size, of one too, can be evaluated.
        dtypes: that it exists in.
    """

    build: Callable[[torch.dtype], Subject]
    hidden: bool = False
    random: bool = False
    runs: bool = True
    dtypes: tuple[torch.dtype, ...] = (F32, F64)

    def subject(self, dtype: torch.dtype) -> Subject:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return self.build(dtype)


# ---------------------------------------------------------------------- data


def each(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def vectors(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Ten numbers and a class for each sample; the first two samples are of one class."""
    targets = classes(N, of=3, seed=2)
    targets[:2] = 1
    return normal(N, 10, seed=1, dtype=dtype), targets


def pictures(dtype: torch.dtype, side: int = 8) -> tuple[Tensor, Tensor]:
    return normal(N, 3, side, side, seed=4, dtype=dtype), vectors(dtype)[1]


def of(model: Callable[[], nn.Module], loss: Callable[..., Tensor] = each) -> Callable[[torch.dtype], Subject]:
    return lambda dtype: (model().to(dtype), loss, vectors(dtype))


def of_pictures(model: Callable[[], nn.Module]) -> Callable[[torch.dtype], Subject]:
    return lambda dtype: (model().to(dtype), each, pictures(dtype))


# ---------------------------------------------------------------------- chance


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    if not training or rate == 0:
        return x
    keep = 1 - rate
    mask = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype) < keep
    return x * mask / keep


class ConvNextBlock(nn.Module):
    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.widen, self.narrow, self.rate = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), rate

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        y = self.narrow(F.gelu(self.widen(y))).movedim(-1, 1)
        return x + drop_path(y, self.rate, self.training)


class WindowBlock(nn.Module):
    """Attention within windows of four tokens, and stochastic depth."""

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.norm, self.project, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        windows = self.norm(x).unflatten(1, (-1, 4))
        mixed = F.scaled_dot_product_attention(*self.project(windows).chunk(3, dim=-1))
        return x + drop_path(self.out(mixed).flatten(1, 2), self.rate, self.training)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT


class Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


def convnext_like() -> nn.Module:
    blocks = [ConvNextBlock(4, 0.05) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), *blocks, Mean(2, 3), nn.Linear(4, 3)).train()


def swin_like() -> nn.Module:
    blocks = [WindowBlock(4, 0.05) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), Tokens(), *blocks, Mean(1), nn.Linear(4, 3)).train()


class Pooled(nn.Module):
    """A classifier on the pooled output of a transformers backbone."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).pooler_output)


def convnext(rate: float = 0.05) -> nn.Module:
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(
        num_channels=3, patch_size=2, num_stages=2, hidden_sizes=[4, 8], depths=[2, 2], drop_path_rate=rate,
        image_size=8,
    )  # fmt: skip
    return Pooled(ConvNextModel(config), 8).train()


def swin(rate: float = 0.05) -> nn.Module:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=8, patch_size=2, num_channels=3, embed_dim=4, depths=[2, 2], num_heads=[1, 2], window_size=2,
        drop_path_rate=rate, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Pooled(SwinModel(config), 8).train()


class Disturbed(nn.Module):
    """A small classifier with something done to its hidden units, and something to its outputs."""

    def __init__(
        self,
        inside: Callable[[Tensor], Tensor] = lambda hidden: hidden,
        after: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 6), nn.Linear(6, 3)
        self.inside, self.after = inside, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.second(self.inside(torch.tanh(self.first(x)))))


def inside(change: Callable[[Tensor], Tensor]) -> Callable[[torch.dtype], Subject]:
    return of(lambda: Disturbed(change))


def after(change: Callable[[Tensor], Tensor]) -> Callable[[torch.dtype], Subject]:
    return of(lambda: Disturbed(after=change))


def loss_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[torch.dtype], Subject]:
    return of(Disturbed, loss)


def numpy_noise(hidden: Tensor) -> Tensor:
    draws = np.random.standard_normal(hidden.shape)  # noqa: NPY002 -- the very thing to be noticed
    return hidden + 1e-3 * torch.from_numpy(draws).to(hidden)


def python_noise(hidden: Tensor) -> Tensor:
    return hidden * (1 + 1e-3 * random.random())


class NoiseOfItsOwn(nn.Module):
    """Draws from a generator that lives on with the module."""

    def __init__(self, of_numpy: bool) -> None:
        super().__init__()
        self.body, self.of_numpy = nn.Linear(10, 3), of_numpy
        self.generator = np.random.default_rng(0) if of_numpy else torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.of_numpy:
            noise = torch.from_numpy(self.generator.standard_normal(x.shape)).to(x)
        else:
            noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return self.body(x + 1e-3 * noise)


def random_mixup(x: Tensor) -> Tensor:
    share = torch.distributions.Beta(1.0, 1.0).sample().to(x)
    return share * x + (1 - share) * x[torch.randperm(len(x))]


def noisy_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    others = torch.randint(0, 3, targets.shape)
    return each(outputs, torch.where(torch.rand(targets.shape) < 0.05, others, targets))


# ---------------------------------------------------------------------- normalisations over the batch


def batch_norm(training: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).train(training)


def sync_batch_norm() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(batch_norm())


def functional_batch_norm(hidden: Tensor) -> Tensor:
    return F.batch_norm(hidden, None, None, training=True)


def instance_norm_over_samples(hidden: Tensor) -> Tensor:
    return F.instance_norm(hidden.T[None])[0].T


def quantised(hidden: Tensor) -> Tensor:
    """To 8 bits with one scale for the whole batch; the gradient passes straight through."""
    scale = hidden.detach().abs().max() / 127
    return hidden + ((hidden / scale).round() * scale - hidden).detach()


class QuantisedBackbone(nn.Module):
    """A frozen backbone whose activations are quantised on the fly, under a trainable head."""

    def __init__(self) -> None:
        super().__init__()
        backbone = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8)).requires_grad_(False).eval()
        with warnings.catch_warnings():
            # torch.ao's own deprecations, as it moves to another package
            warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated")
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
            self.backbone = torch.ao.quantization.quantize_dynamic(backbone, {nn.Linear}, dtype=torch.qint8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


# ---------------------------------------------------------------------- losses of the batch


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


# ---------------------------------------------------------------------- other samples inside the model


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


COUPLED: dict[str, Entry] = {
    # ------------------------------------------------------------------ chance
    "drop path, convnext-like": Entry(of_pictures(convnext_like), random=True),
    "drop path, swin-like": Entry(of_pictures(swin_like), random=True),
    "drop path, ConvNext": Entry(of_pictures(convnext), random=True),
    "drop path, Swin": Entry(of_pictures(swin), random=True),
    "functional dropout at 1 %": Entry(inside(lambda hidden: F.dropout(hidden, 0.01)), random=True),
    "gaussian noise": Entry(inside(lambda hidden: hidden + 1e-3 * torch.randn_like(hidden)), random=True),
    "noise from numpy": Entry(inside(numpy_noise), random=True),
    "noise from random": Entry(inside(python_noise), random=True),
    "noise from a torch generator": Entry(of(lambda: NoiseOfItsOwn(False)), random=True),
    "noise from a numpy generator": Entry(of(lambda: NoiseOfItsOwn(True)), random=True),
    "gumbel softmax": Entry(inside(lambda hidden: F.gumbel_softmax(hidden, tau=0.5)), random=True),
    "random mixup": Entry(inside(random_mixup), random=True),
    "random labels": Entry(loss_of(noisy_labels), random=True),
    # ------------------------------------------------------------------ normalisations over the batch
    "batch norm": Entry(of(batch_norm), runs=False),
    "batch norm of pictures": Entry(
        of_pictures(
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Mean(2, 3), nn.Linear(4, 3))
        )
    ),
    "functional batch norm": Entry(inside(functional_batch_norm), runs=False),
    "sync batch norm": Entry(of(sync_batch_norm), runs=False),
    "instance norm over samples": Entry(inside(instance_norm_over_samples), runs=False),
    "softmax over samples": Entry(inside(lambda hidden: hidden.softmax(0))),
    "unit norm over samples": Entry(inside(lambda hidden: F.normalize(hidden, dim=0))),
    "centred a little": Entry(after(lambda outputs: outputs - 0.001 * outputs.mean(0))),
    "quantised with one scale": Entry(inside(quantised)),
    "dynamically quantised backbone": Entry(of(QuantisedBackbone), dtypes=(F32,)),
    # ------------------------------------------------------------------ losses of the batch
    "class weights of the batch": Entry(loss_of(batch_weighted), hidden=True),
    "triplets, batch-hard": Entry(loss_of(batch_hard)),
    "InfoNCE": Entry(info_nce),
    "ranking": Entry(loss_of(ranking), hidden=True),
    "hard examples only": Entry(loss_of(hardest)),
    "weighted by their own losses": Entry(loss_of(self_weighted)),
    "divided by the batch's size": Entry(loss_of(divided_by_size)),
    "decorrelation": Entry(loss_of(decorrelated)),
    "load balance of experts": Entry(of(Mixture, with_balance)),
    "experts of limited capacity": Entry(of(Capacity), hidden=True),
    "experts that choose": Entry(of(ExpertChoice), hidden=True),
    # ------------------------------------------------------------------ other samples inside the model
    "masked scatter": Entry(inside(masked_scatter)),
    "mixed with its neighbour": Entry(inside(lambda hidden: 0.9 * hidden + 0.1 * hidden.roll(1, 0))),
    "only in the gradient": Entry(inside(only_in_the_gradient)),
    "gradients scaled by frequency": Entry(frequent(True), hidden=True),
    "those long before": Entry(inside(of_those_long_before), hidden=True),
    "the last sample alone": Entry(inside(last_sees_all), hidden=True),
    "causal attention over samples": Entry(inside(causal_attention_over_samples)),
    "queue in a buffer": Entry(of(Queue, first_of_queue)),
    "nodes of one graph": Entry(of(lambda: OneGraph(of_ids=False)), runs=False),
    "nodes of one graph, cut to the batch": Entry(of(lambda: OneGraph(of_ids=False, cut=True)), hidden=True),
}


# ---------------------------------------------------------------------- sound, though it may not look so


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


def weighted_nodes(dtype: torch.dtype) -> Subject:
    return OneGraph(of_ids=True).to(dtype), each, (torch.arange(N), vectors(dtype)[1])


SOUND: dict[str, Entry] = {
    "gradients not scaled by frequency": Entry(frequent(False)),
    "twelve layers": Entry(of(deep)),
    "fitted to losses of 1e-7": Entry(fitted),
    "convolutions and group norm": Entry(of_pictures(group_norm)),
    "lstm": Entry(of(Recurrent)),
    "transformer in eval": Entry(of(lambda: Encoder().eval())),
    "the same noise for every sample": Entry(inside(same_noise_for_all)),
    "dropout in eval": Entry(of(dropout_in_eval)),
    "batch norm in eval": Entry(of(lambda: batch_norm(training=False))),
    "large logits": Entry(of(large_logits)),
    "wide sums": Entry(wide),
    "drop path in eval, ConvNext": Entry(of_pictures(lambda: convnext().eval())),
    "drop path of rate 0, Swin": Entry(of_pictures(lambda: swin(0.0))),
    "experts without their balance": Entry(of(Mixture, without_balance)),
    "experts chosen by each sample": Entry(of(TopMixture)),
    "chosen nodes of one whole graph": Entry(weighted_nodes),
    "quantised sample by sample": Entry(
        inside(lambda hidden: hidden + ((hidden * 4).round() / 4 - hidden).detach())
    ),
}
