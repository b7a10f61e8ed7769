"""The gradients of a batch's samples with respect to some parameters, by one mapped backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

from noisescape.linops.precision import at_full_precision
from noisescape.risk.model_loss import ModelLoss, mapping, with_batch_dimension
from noisescape.risk.samples import Batch
from noisescape.risk.trees import Tree, map_tensors, sample_axes


def mapped_gradients(
    function: ModelLoss, theta: Tensor, batch: Batch, positions: Sequence[int]
) -> dict[int, Tensor]:
    """The gradients at θ, (D,), of the parameters at these positions, (n, size) each, by ``vmap``."""
    if not positions:
        return {}
    theta = theta.detach()
    parts = list(theta.split(function.sizes))
    start = torch.cat([parts[position] for position in positions])
    sizes = [function.sizes[position] for position in positions]

    def single(inputs: Tree, targets: Tree) -> Tensor:
        inputs, targets = map_tensors(with_batch_dimension, (inputs, targets))

        def loss(point: Tensor) -> Tensor:
            moved = parts.copy()
            for position, part in zip(positions, point.split(sizes), strict=True):
                moved[position] = part
            shaped = [part.view(shape) for part, shape in zip(moved, function.shapes, strict=True)]
            return function.losses_of_parts(shaped, inputs, targets)[0]

        return grad(loss)(start)

    data = (batch.inputs, batch.targets)
    with mapping(), at_full_precision():
        rows = vmap(single, in_dims=sample_axes(data))(*data)
    return dict(zip(positions, rows.split(sizes, dim=1), strict=True))


def mapped_losses(function: ModelLoss, theta: Tensor, batch: Batch) -> Tensor:
    """ℓ of a batch at θ, (D,), by ``vmap`` over its samples: (n,)."""
    theta = theta.detach()

    def single(inputs: Tree, targets: Tree) -> Tensor:
        inputs, targets = map_tensors(with_batch_dimension, (inputs, targets))
        return function.losses_of_parts(function.parts(theta), inputs, targets)[0]

    data = (batch.inputs, batch.targets)
    with torch.no_grad(), mapping(), at_full_precision():
        return vmap(single, in_dims=sample_axes(data))(*data)
