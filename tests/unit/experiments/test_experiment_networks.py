"""The networks of the experiments: sizes, initialisation, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cases import normal
from noisescape.experiments.models import digits_net, fully_connected, lenet, vgg11


def counted(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_networks_have_the_published_numbers_of_parameters() -> None:
    assert counted(lenet(0)) == 11_330
    assert counted(vgg11(0)) == 9_750_922
    assert counted(vgg11(0, image_size=16)) == 9_750_922
    assert counted(digits_net(0)) == 2_118
    assert counted(fully_connected(0, (784, 500, 500, 500, 10))) == 392_500 + 2 * 250_500 + 5_010


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_the_lenet_starts_from_a_truncated_normal(std: float) -> None:
    values = nn.utils.parameters_to_vector(lenet(3, init_std=std).parameters()).detach()
    assert float(values.abs().max()) <= 2 * std
    assert float(values.abs().max()) > 1.95 * std, "nothing is cut off below two standard deviations"
    # of a normal cut at ±2: variance 1 − 4φ(2)/(2Φ(2) − 1)
    assert float(values.std()) == pytest.approx(0.8796 * std, rel=0.03)
    assert abs(float(values.mean())) < 4 * std / math.sqrt(len(values))
    for parameter in lenet(3, init_std=std).parameters():
        assert bool((parameter != 0).all()), "biases too"


def test_a_fully_connected_network_starts_as_pytorchs_layers_do_and_ends_without_a_relu() -> None:
    model = fully_connected(3, (20, 30, 10))
    torch.manual_seed(3)
    first, second = nn.Linear(20, 30), nn.Linear(30, 10)
    x = normal(4, 20, dtype=torch.float32)
    torch.testing.assert_close(model(x), second(torch.relu(first(x))))
    assert bool((model(x) < 0).any())
    assert not torch.equal(model(x), fully_connected(4, (20, 30, 10))(x))


def test_vgg_starts_from_kaimings_normal_with_zero_biases() -> None:
    for name, parameter in vgg11(5, width=0.25).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            fan_in = parameter[0].numel()
            relative = float(parameter.detach().std()) / math.sqrt(2 / fan_in)
            assert abs(relative - 1) < 4.5 / math.sqrt(2 * parameter.numel())


def test_the_published_vgg_starts_from_fan_out_and_the_default_of_linear_layers() -> None:
    model = vgg11(5, width=0.25, init="fan-out")
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            fan_out = 9 * layer.out_channels
            relative = float(layer.weight.detach().std()) / math.sqrt(2 / fan_out)
            assert abs(relative - 1) < 4.5 / math.sqrt(2 * layer.weight.numel())
            assert layer.bias is not None
            assert not layer.bias.any()
        elif isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            values = torch.cat([layer.weight.flatten(), layer.bias]).detach()
            assert 0.99 * bound < float(values.abs().max()) <= bound
            error = bound * math.sqrt(4 / 45 / len(values))  # of the mean of squares of a uniform
            assert abs(float(values.square().mean()) - bound**2 / 3) < 4.5 * error * bound
            assert bool(layer.bias.any())
    assert counted(model) == counted(vgg11(5, width=0.25))


@pytest.mark.parametrize(
    "make",
    [lenet, digits_net, lambda seed: vgg11(seed, width=1 / 32)],
    ids=["lenet", "digits_net", "vgg11"],
)
def test_a_network_is_fixed_by_its_seed(make: Callable[[int], nn.Module]) -> None:
    one, again, other = (nn.utils.parameters_to_vector(make(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("size", "pools"), [(16, 4), (32, 5)])
@pytest.mark.parametrize("width", [1 / 64, 1 / 16, 0.3])
def test_vgg_classifies_images_of_both_sizes(size: int, pools: int, width: float) -> None:
    model = vgg11(0, width=width, image_size=size)
    kinds = [type(layer) for layer in model]
    assert kinds.count(nn.Conv2d) == 8
    assert kinds.count(nn.Linear) == 3
    assert kinds.count(nn.MaxPool2d) == pools
    images = normal(3, 3, size, size, dtype=torch.float32)
    outputs = model(images)
    assert outputs.shape == (3, 10)
    assert len({tuple(row) for row in outputs.tolist()}) == 3
    channels = [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]
    assert channels == [max(1, round(entry * width)) for entry in (64, 128, 256, 256, 512, 512, 512, 512)]


@pytest.mark.parametrize("size", [8, 28, 64, 0])
def test_vgg_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"takes images of 32 or 16 pixels a side, not {size}"):
        vgg11(0, image_size=size)


@pytest.mark.parametrize("width", [0.0, -0.5, 1.01, math.nan])
def test_vgg_refuses_other_widths(width: float) -> None:
    with pytest.raises(ValueError, match="width is a share of the published one in"):
        vgg11(0, width=width)
