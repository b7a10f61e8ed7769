"""The networks of the experiments."""

from __future__ import annotations

import torch
from torch import nn


def digits_net(seed: int) -> nn.Sequential:
    """A LeNet-like network for 8 × 8 images: 2,118 parameters, PyTorch's default initialisation.

    conv 3×3×8 with stride 2, ReLU, conv 2×2×16, ReLU, linear 64→20, ReLU, linear 20→10. Strides in place of
    max-pooling: 2.5 times faster on a CPU at the same number of parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
        )
