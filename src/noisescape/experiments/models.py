"""The networks of the experiments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import Init


def digits_net(seed: int, *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A LeNet-like network for 8 × 8 images: 2,118 parameters, PyTorch's default initialisation.

    conv 3×3×8 with stride 2, ReLU, conv 2×2×16, ReLU, linear 64→20, ReLU, linear 20→10, or another activation in
    place of ReLU. Strides in place of max-pooling: 2.5 times faster on a CPU at the same number of parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2),
            activation(),
            nn.Conv2d(8, 16, 2),
            activation(),
            nn.Flatten(),
            nn.Linear(64, 20),
            activation(),
            nn.Linear(20, 10),
        )


def fully_connected(seed: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from width to width, the input's first, with ReLU between; PyTorch's default initialisation.

    >>> sum(p.numel() for p in fully_connected(0, (784, 500, 500, 500, 10)).parameters())
    898510
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for wide, following in itertools.pairwise(widths):
            layers += [nn.Linear(wide, following), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def lenet(seed: int, *, init_std: float = 0.02) -> nn.Sequential:
    """The LeNet-like network for 28 × 28 images: 11,330 parameters, all from a truncated normal, biases too.

    conv 5×5×10, max-pool, ReLU, conv 5×5×10, max-pool, ReLU, linear 160→50, ReLU, linear 50→10.

    >>> sum(p.numel() for p in lenet(0).parameters())
    11330
    """
    model = nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(160, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.trunc_normal_(parameter, std=init_std, a=-2 * init_std, b=2 * init_std, generator=generator)
    return model


VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


def vgg11(seed: int, *, width: float = 1.0, image_size: int = 32, init: Init = "fan-in") -> nn.Sequential:
    """VGG-11 for colour images of 32 × 32 or 16 × 16, without batch-norm or dropout.

    3×3 convolutions of the published widths times ``width``, ReLU, max-pooling after layers 1, 2, 4, 6 and 8
    (16 × 16 images skip the first), two hidden linear layers of 512, linear to 10. Kaiming-normal weights of
    variance 2/fan-in, zero biases: at the default initialisation a network of this depth without normalisation
    hardly starts to learn.

    Args:
        seed: of the initialisation.
        width: of the layers, as a share of the published 9,750,922-parameter network's.
        image_size: 32 or 16.
        init: "fan-out" is the published code's: convolutions of variance 2/fan-out, with zero biases; weights and
            biases of linear layers from U(±1/√fan-in), PyTorch's default.

    >>> sum(p.numel() for p in vgg11(0).parameters())
    9750922
    """
    if image_size not in (16, 32):
        raise InvalidValueError(f"VGG-11 takes images of 32 or 16 pixels a side, not {image_size}")
    if not 0 < width <= 1:
        raise InvalidValueError(f"width is a share of the published one in (0, 1], not {width}")
    layers: list[nn.Module] = []
    channels, pools = 3, 0
    for entry in VGG11:
        if isinstance(entry, int):
            wide = max(1, round(entry * width))
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
            channels = wide
        else:
            pools += 1
            if not (image_size == 16 and pools == 1):
                layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(channels, 10))
    generator = torch.Generator().manual_seed(seed)
    mode: Literal["fan_in", "fan_out"] = "fan_in" if init == "fan-in" else "fan_out"
    for layer in model:
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        weight, bias = layer.parameters()
        if init == "fan-out" and isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in (weight, bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        else:
            nn.init.kaiming_normal_(weight, mode=mode, nonlinearity="relu", generator=generator)
            nn.init.zeros_(bias)
    return model
