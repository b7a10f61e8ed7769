"""Recurrent and convolutional networks, and every normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Sequential(nn.Module):
    """The last state of a recurrent layer, classified."""

    def __init__(self, cell: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell = cell(3, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def conv_with(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm, nn.SiLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def conv1d_batch_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.copy_(torch.linspace(-1, 1, 4))
    norm.running_var.copy_(torch.linspace(0.5, 2, 4))
    body = nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.GELU(), nn.Flatten(), nn.Linear(16, 3))
    return body.eval()


def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.RMSNorm(6), nn.Linear(6, 3))


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.* is deprecated", category=FutureWarning)
        first = nn.utils.weight_norm(nn.Conv1d(2, 4, 3))
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def new_weight_norm() -> nn.Module:
    first, last = parametrizations.weight_norm(nn.Conv1d(2, 4, 3)), parametrizations.weight_norm(nn.Linear(16, 3))
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), last)


class WeightNormFormula(nn.Module):
    """g·v/‖v‖ over all but the first dimension."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / v.square().sum(tuple(range(1, v.ndim)), keepdim=True).sqrt())


def old_weight_norm_by_formula() -> nn.Module:
    """PyTorch's second derivative of its fused weight norm is wrong (gradgradcheck fails): no reference."""
    model = old_weight_norm()
    (hook,) = model[0]._forward_pre_hooks.values()
    hook.compute_weight = lambda module: WeightNormFormula()(module.weight_g, module.weight_v)
    return model


def new_weight_norm_by_formula() -> nn.Module:
    model = new_weight_norm()
    for layer in (model[0], model[3]):
        layer.parametrizations.weight[0] = WeightNormFormula()
    return model


def spectral_norm(kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(kind(nn.Linear(4, 6)), nn.Tanh(), kind(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3)).eval()


class UNet(nn.Module):
    """Down, up and across: a number for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.up, self.last = nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(6, 1, 1)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.tanh(self.first(x))
        deep = torch.tanh(self.down(F.max_pool2d(wide, 2)))
        return self.last(torch.cat([wide, torch.tanh(self.up(self.enlarge(deep)))], dim=1))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 3 + 4 + 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x))
        most, mean = F.max_pool2d(y, 3, 2), F.avg_pool2d(y, 2)
        pools = [F.adaptive_avg_pool2d(most, (1, 3)), F.adaptive_max_pool2d(mean, 1), F.adaptive_avg_pool2d(y, 2)]
        return self.head(torch.cat([pool.flatten(1) for pool in pools], dim=1))


def unusual_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4), nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Residual(nn.Module):
    """Activations and sums in place, as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4))
        self.norm, self.relu, self.head = nn.BatchNorm2d(4).eval(), nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(self.relu(self.norm(self.first(x))))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


def segmentation() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 3, 1))
