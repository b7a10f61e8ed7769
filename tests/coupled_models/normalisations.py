"""Normalisations and scales over the batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
