"""Derivatives along one direction or a block of them: the three passes everything else is built from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import jvp, vmap

Function = Callable[[Tensor], Tensor]


def push_forward(function: Function, point: Tensor, directions: Tensor) -> Tensor:
    """J v by forward mode. With a single point (D,), columns (D, K) give derivatives with K last."""
    point = point.detach()

    def along(direction: Tensor) -> Tensor:
        tangent = jvp(function, (point,), (direction,))[1]
        # an identically zero tangent comes out of vmap with a corrupt shape unless it meets a mapped tensor
        return tangent + torch.zeros_like(direction.flatten()[:1]).sum()

    if directions.ndim == point.ndim:
        return along(directions)
    return vmap(along, in_dims=1, out_dims=-1)(directions)


@torch.enable_grad()
def push_forward_by_reverse(function: Function, point: Tensor, directions: Tensor) -> Tensor:
    """J v by two reverse passes, for functions without a forward derivative.

    u ↦ Jᵀu is linear, so its derivative along v is J v for any u.
    """
    leaf = point.detach().requires_grad_()
    values = function(leaf)
    dummy = torch.zeros_like(values, requires_grad=True)
    (pulled,) = torch.autograd.grad(values, leaf, dummy, create_graph=True, materialize_grads=True)
    if directions.ndim == point.ndim:
        return pull_back(pulled, dummy, directions)
    return pull_back(pulled, dummy, directions.mT).movedim(0, -1)


def pull_back(values: Tensor | GradientEdge, inputs: Tensor, cotangents: Tensor) -> Tensor:
    """Jᵀu by reverse mode; the graph is kept.

    ``cotangents`` has the shape of ``values``, or one more leading dimension K; the result has the shape of
    ``inputs``, or one more leading dimension K. Of values shaped like the inputs an edge of the graph will do.
    """
    single = cotangents.ndim == (values if isinstance(values, Tensor) else inputs).ndim
    if isinstance(values, Tensor) and not values.requires_grad:  # does not depend on the inputs
        block = () if single else (len(cotangents),)
        return inputs.new_zeros(*block, *inputs.shape)
    if single:
        # contiguous: some backward kernels (grouped matrix products) take no other
        return torch.autograd.grad(
            values, inputs, cotangents.contiguous(), retain_graph=True, materialize_grads=True
        )[0].detach()
    try:
        (pulled,) = torch.autograd.grad(
            values, inputs, cotangents, is_grads_batched=True, retain_graph=True, materialize_grads=True
        )
    except (
        Exception
    ):  # operations without a rule for mapping fail in many ways; one by one, a true error comes again
        return torch.stack([pull_back(values, inputs, each) for each in cotangents])
    return pulled.detach()


class Held(Protocol):
    """A function of θ and a batch whose backward passes need something in place."""

    def losses(self, theta: Tensor, batch: Any) -> Tensor:
        """ℓ of the batch."""

    def held(self, theta: Tensor) -> AbstractContextManager[None]:
        """What a backward pass runs in."""


def gradient_of(function: Held, value: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    """The gradient of a scalar made of the function's losses at ``leaf``; 0 where it does not depend on it."""
    with function.held(leaf):
        return torch.autograd.grad(value, leaf, create_graph=create_graph, materialize_grads=True)[0]


@torch.enable_grad()
def gradient_of_sum(function: Held, theta: Tensor, batch: Any) -> Tensor:
    """The gradient of Σ_n ℓ_n over a batch at θ."""
    leaf = theta.detach().requires_grad_()
    return gradient_of(function, function.losses(leaf, batch).sum(), leaf)


def edge_of(values: Tensor) -> Tensor | GradientEdge:
    """What :func:`pull_back` needs of values as large as the inputs, without keeping the numbers themselves."""
    return get_gradient_edge(values) if values.requires_grad else values


def column_blocks(directions: Tensor, size: int, point: Tensor) -> Iterator[Tensor]:
    """The columns of a block (D, K) at a point (D,), ``size`` at a time.

    A lone vector, or one direction for each replica, is a single block.
    """
    if directions.ndim == point.ndim:
        yield directions
    else:
        yield from directions.split(size, dim=1)
