"""The gradients of a batch's samples by one mapped backward pass; of linear layers only their factors.

A layer that gets one vector a sample, a, has the gradient δaᵀ: δ is the derivative with respect to a zero added to
the layer's output, found inside the same mapped pass as the other layers' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from noisescape.linops.precision import without_autocast
from noisescape.risk.factored_gradients import FactoredGradients, OuterGradients
from noisescape.risk.linear_layers import LinearLayer, offset_outputs, vector_layers
from noisescape.risk.model_loss import ModelLoss, mapping, with_batch_dimension
from noisescape.risk.samples import Batch
from noisescape.risk.trees import Tree, map_tensors, sample_axes
from noisescape.risk.trial import TRIAL


def mapped_gradients(
    function: ModelLoss, theta: Tensor, batch: Batch, layers: list[LinearLayer]
) -> FactoredGradients:
    """G of a batch at θ, (D,), by ``vmap``, with the factors of these layers."""
    theta = theta.detach()
    parts = list(theta.split(function.sizes))
    factored = {position for layer in layers for position in layer.parameters}
    direct = [position for position in range(len(parts)) if position not in factored]
    start = torch.cat([theta[:0], *(parts[position] for position in direct)])
    sizes = [function.sizes[position] for position in direct]

    def single(inputs: Tree, targets: Tree) -> Any:
        inputs, targets = map_tensors(with_batch_dimension, (inputs, targets))

        def loss(point: Tensor, offsets: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            moved = parts.copy()
            for position, part in zip(direct, point.split(sizes), strict=True):
                moved[position] = part
            shaped = [part.view(shape) for part, shape in zip(moved, function.shapes, strict=True)]
            with offset_outputs(layers, offsets) as seen:
                value = function.losses_of_parts(shaped, inputs, targets)[0]
            return value, [seen[number] for number in range(len(layers))]

        offsets = [theta.new_zeros(layer.module.out_features) for layer in layers]
        return grad(loss, argnums=(0, 1), has_aux=True)(start, offsets)

    data = (batch.inputs, batch.targets)
    with mapping(), without_autocast():
        (rows, deltas), seen = vmap(single, in_dims=sample_axes(data))(*data)
    outer = [
        OuterGradients(layer.weight, layer.bias, inputs, delta)
        for layer, inputs, delta in zip(layers, seen, deltas, strict=True)
    ]
    return FactoredGradients(function.sizes, rows, outer)


def mappable_layers(
    function: ModelLoss, theta: Tensor, batches: list[Batch], *, factors_allowed: bool
) -> list[LinearLayer] | None:
    """The linear layers whose factors :func:`mapped_gradients` may keep; None where it gives other gradients.

    Against the gradients of the first samples of each batch, one by one; if in doubt, one by one it is. No factors
    are kept of layers whose parameters anything but the layer reads, however little depends on it now.
    """
    tried = [batch.head(TRIAL.mapped) for batch in batches]
    wanted = [function.gradients_one_by_one(theta, batch) for batch in tried]
    with torch.no_grad():
        one = tried[0].head(1).inputs
        found = vector_layers(function.modules, function.trainable, lambda: function.output_values(theta, one))
    if not factors_allowed or any(_reads_elsewhere(function, theta, batch, found) for batch in tried):
        found = []
    for layers in (found, []):
        pairs = zip(tried, wanted, strict=True)
        if all(_maps_rightly(function, theta, batch, rows, layers) for batch, rows in pairs):
            return layers
    return None


@torch.enable_grad()
def _reads_elsewhere(function: ModelLoss, theta: Tensor, batch: Batch, layers: list[LinearLayer]) -> bool:
    """Whether the losses depend on the layers' parameters other than through the layers' own calls."""
    if not layers:
        return False
    parts = [part.detach().requires_grad_() for part in function.parts(theta)]
    positions = [position for layer in layers for position in layer.parameters]

    def fixed(module: nn.Linear, given: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        bias = module.bias
        return nn.functional.linear(given[0], module.weight.detach(), None if bias is None else bias.detach())

    handles = [layer.module.register_forward_hook(fixed, prepend=True) for layer in layers]
    try:
        total = function.losses_of_parts(parts, batch.inputs, batch.targets).sum()
    finally:
        for handle in handles:
            handle.remove()
    if not total.requires_grad:
        return False
    found = torch.autograd.grad(total, [parts[position] for position in positions], allow_unused=True)
    return any(gradient is not None for gradient in found)


def _maps_rightly(
    function: ModelLoss, theta: Tensor, batch: Batch, wanted: Tensor, layers: list[LinearLayer]
) -> bool:
    try:
        mapped = mapped_gradients(function, theta, batch, layers).rows()
    except Exception:  # an operation without a rule says so in many ways
        return False
    sizes = torch.linalg.vector_norm(wanted, dim=1)
    errors = torch.linalg.vector_norm(mapped - wanted, dim=1)
    floor = 1e-3 * sizes.amax()  # rounding of a much larger sample's arithmetic
    return bool(sizes.any()) and bool((errors <= function.tolerance * torch.maximum(sizes, floor)).all())
