"""Norms of gradients, by parameter: in the Euclidean metric and in the optimiser's, sorted by parameter group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from noisescape.linops.tall import lengths
from noisescape.training.preconditioner import preconditioner

TOLERANCE = 1e-3
"""Of squared norms that are equal but for rounding."""


class GradientNorms:
    """Norms of parts of a gradient, on their devices until they are squared and summed.

    Args:
        optimizer: whose groups they are sorted by, and whose metric is looked at.
        sharded: whether gradients are whole while the optimiser's state is not, so that there is no metric.
    """

    def __init__(self, optimizer: Optimizer, *, sharded: bool = False) -> None:
        self._optimizer = optimizer
        self._sharded = sharded
        groups = len(optimizer.param_groups)
        self._plain: list[list[Tensor]] = [[] for _ in range(groups)]
        self._in_metric: list[list[Tensor]] = [[] for _ in range(groups)]

    @property
    def groups(self) -> int:
        """How many groups there were."""
        return len(self._plain)

    @property
    def has_metric(self) -> bool:
        """Whether any was taken in the optimiser's metric."""
        return any(self._in_metric)

    @property
    def parts(self) -> list[Tensor]:
        """The Euclidean ones, group after group."""
        return [each for group in self._plain for each in group]

    def add(self, group: int, held: Tensor, gradient: Tensor, *, metric: bool = True) -> Tensor:
        """Take the gradient of a parameter that the optimiser has as ``held``; its Euclidean norm."""
        found = norm(gradient)
        self._plain[group].append(found)
        if metric and not self._sharded:
            diagonal = preconditioner(self._optimizer, self._optimizer.param_groups[group], held)
            if diagonal is not None:
                self._in_metric[group].append(_norm_in(diagonal, gradient))
        return found

    def squared(self, device: torch.device) -> Tensor:
        """Σ of squares, (2 metrics, groups); of the optimiser's, 0 where it has none."""
        zero = torch.zeros((), device=device)
        return torch.stack(
            [
                torch.stack([sum_of_squares(group, device) if group else zero for group in groups])
                for groups in (self._plain, self._in_metric)
            ]
        )


def norm(gradient: Tensor) -> Tensor:
    """‖gradient‖, of half precision in single; of a shard, its own."""
    if gradient.requires_grad:  # under create_graph=True
        gradient = gradient.detach()
    if isinstance(gradient, DTensor):
        gradient = gradient.to_local()
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    return lengths(gradient.reshape(-1), dtype=torch.float32 if half else None)


def sum_of_squares(norms: list[Tensor], device: torch.device) -> Tensor:
    """Σ norm², on one device."""
    return torch.stack([each.to(device) for each in norms]).square().sum()


def differ(found: Tensor, expected: Tensor) -> Tensor:
    """Whether any squared norms are not the same, on their device; of what is not finite that is not said."""
    bound = TOLERANCE * expected.abs().clamp_min(torch.finfo(expected.dtype).tiny)
    return ((found - expected).abs() > bound).any()


def _norm_in(diagonal: Tensor, gradient: Tensor) -> Tensor:
    """‖D^½ gradient‖; the diagonal is written to."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return norm(gradient.values() * diagonal[tuple(gradient.indices())].sqrt_())
    if gradient.is_complex():  # real and imaginary parts are parameters of their own to an optimiser
        gradient = torch.view_as_real(gradient.resolve_conj())
    return norm(gradient * diagonal.sqrt_())
