"""Models and losses that leave something to chance."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coupled_models.subjects import Mean, each


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
