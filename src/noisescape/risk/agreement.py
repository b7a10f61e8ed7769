"""Whether a faster way to a derivative gives the same as plain reverse mode, tried before it is relied on.

Compared are whole vectors, sample by sample, along a direction made of the gradients themselves and along a random
one: along the latter alone an error in a few of many coordinates would hardly show. Zeros agree with nothing.
Vectors of the size of θ are made, compared and let go one at a time: a trial should not need much more memory than
what it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from noisescape.linops.tall import inner_products, lengths
from noisescape.risk.differentiation import Function, pull_back, push_forward
from noisescape.risk.trial import noise

Derivative = Callable[[Tensor], Tensor]
Push = Callable[[Function, Tensor, Tensor], Tensor]
KINKED = 1e-2
"""Relative difference that kinks can make in single precision: a unit within rounding of 0 falls to either side as
samples are evaluated together or alone. It is allowed where double precision agrees, in which hardly any lies so
near: a ResNet-18 at its initialisation differs by 1.5e-3, and by 1e-15 there."""

SHORTEST = (1e-11, 1e-12)
STEPS = (1e-9, 1e-11, 1e-6, 1e-10, 1e-12, 1e-8, 1e-4, 1e-3)
"""Of differences of the gradient, in units of ‖θ‖. A ResNet-18 at its initialisation, on eight images of 32 × 32
pixels, has a kink within 1e-10 of θ: shorter steps agree with its Hessian to 1e-6, others are 36 to 100 % off."""


def agrees(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two results are the same to a share of the larger's largest entry; never for zeros."""
    return agree(found[None], [wanted], tolerance)


def agree(found: Iterable[Tensor], wanted: Iterable[Tensor], tolerance: float) -> bool:
    """:func:`agrees` of several results taken as one, whose largest entry is that of all of them."""
    size, error = 0.0, 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape or not other.numel():
            return False
        largest, apart = _largest(other), _largest(one - other)
        if not (math.isfinite(largest) and math.isfinite(apart)):
            return False
        size, error = max(size, largest), max(error, apart)
    return size > 0 and error <= tolerance * size


def _largest(vector: Tensor) -> float:
    return float(torch.stack(vector.aminmax()).abs().amax())


def two_directions(values: Function, theta: Tensor) -> Tensor:
    """(D, 2): a sum of the samples' gradients with mixed signs, and a random vector, both of unit length."""
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        losses = values(leaf)
        signs = torch.ones_like(losses)
        signs[1::2] = -0.5
        (aligned,) = torch.autograd.grad((losses * signs).sum(), leaf, materialize_grads=True)
    # in place, into a block laid out as those of users: no more than the two are ever held
    directions = theta.new_empty(len(theta), 2)
    directions[:, 0] = aligned
    del aligned, losses
    directions[:, 1] = noise(len(theta), 0)
    sizes = lengths(directions, dim=0)
    return directions.div_(sizes.clamp_min(torch.finfo(theta.dtype).tiny))


def gives_derivatives(
    push: Push, values: Function, rows: Iterable[Tensor], directions: Tensor, theta: Tensor, tolerance: float
) -> bool:
    """Whether a way to Gv gives what the gradients of single samples do, to which first derivatives suffice.

    Args:
        push: (function, θ, directions) ↦ derivatives of each value along each direction, (n, K).
        values: θ ↦ losses, (n,).
        rows: gradients taken one by one, each (D,); not asked for where there is nothing to hold against them.
        directions: (D, K).
        theta: (D,).
        tolerance: relative.
    """
    try:
        found = push(values, theta, directions)
    except Exception:  # no rule, no second derivative, a graph that cannot be mapped: each says it in its own words
        return False
    wanted = torch.cat([inner_products(row[None], directions) for row in rows])
    return all(agrees(found[:, column], wanted[:, column], tolerance) for column in range(directions.shape[1]))


def pushes_through_gradient(
    total: Function, gradient: Derivative, values: Function, theta: Tensor, tolerance: float
) -> bool:
    """Whether forward mode through the gradient of ``total`` gives Hessian products as two reverse passes do."""
    try:
        directions = two_directions(values, theta)
        found = push_forward(gradient, theta, directions)
        return all(
            agrees(found[:, column], _hessian_vector_product(total, theta, directions[:, column]), tolerance)
            for column in range(2)
        )
    except Exception:
        return False


def maps_cotangents(total: Function, values: Function, theta: Tensor, tolerance: float) -> bool:
    """Whether several reverse passes, mapped together, give what they give one by one."""
    try:
        directions = two_directions(values, theta).T.contiguous()
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            losses = values(leaf)
            (total_gradient,) = torch.autograd.grad(total(leaf), leaf, create_graph=True, materialize_grads=True)
        weights = torch.stack([torch.ones_like(losses), torch.linspace(-1, 1, len(losses)).to(losses)])
        pairs = [(losses, weights), (total_gradient, directions)]
        return all(
            agree(
                torch.autograd.grad(
                    of, leaf, block, is_grads_batched=True, retain_graph=True, materialize_grads=True
                )[0],
                (pull_back(of, leaf, each) for each in block),
                tolerance,
            )
            for of, block in pairs
        )
    except Exception:
        return False


def has_delayed_errors(values: Tensor) -> bool:
    """Whether a graph has an operation that is differentiable once, marked so.

    PyTorch raises where such an operation is met, but differentiating with respect to chosen inputs passes it by:
    its part of the second derivative is then missing without a word.
    """
    waiting: list[Any] = [values.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith("DelayedError"):
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def second_derivative_error(
    gradient: Derivative, product: Callable[[Tensor, Tensor], Tensor], theta: Tensor, enough: float
) -> float:
    """‖Hv − d‖/‖Hv‖, with Hv by two reverse passes and d the difference of gradients along v; θ in float64.

    Where they differ, a backward pass lacks terms of its own derivative, or the gradient jumps (rounding in the
    forward pass, a straight-through gradient): there is no Hessian to speak of. The best of several steps counts:
    short ones hardly ever cross a kink, long ones rise above the rounding of models that compute partly in float32.
    The shortest count where rounding, which is allowed for, could not pass for agreement.

    Args:
        gradient: point ↦ gradient.
        product: (point, v) ↦ Hv.
        theta: (D,).
        enough: an error that is small enough to stop at.
    """
    here = gradient(theta)
    slope = lengths(here)
    direction = noise(len(theta), 1).to(theta)
    direction = direction.div_(lengths(direction)).add_(here / slope.clamp_min(1e-300))
    # not along parameters that take no gradient by definition, as an embedding's padding
    direction[here == 0] = 0
    del here
    direction /= lengths(direction).clamp_min(1e-300)
    wanted = product(theta, direction)
    curvature = lengths(wanted)
    size = max(float(lengths(theta)), 1.0)
    best = float("inf")
    for share in STEPS:
        step = share * size
        rounding = 1e-14 * slope / step
        if share in SHORTEST and rounding > enough * curvature:
            continue
        found = (gradient(theta + step * direction) - gradient(theta - step * direction)).div_(2 * step)
        larger = torch.maximum(curvature, lengths(found))
        error = (lengths(found.sub_(wanted)) - rounding).clamp_min(0)
        best = min(best, float(error / larger.clamp_min(1e-300)))
        if best <= enough:
            break
    return best


def _hessian_vector_product(total: Function, theta: Tensor, direction: Tensor) -> Tensor:
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        (total_gradient,) = torch.autograd.grad(total(leaf), leaf, create_graph=True, materialize_grads=True)
    return pull_back(total_gradient, leaf, direction)
