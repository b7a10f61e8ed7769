"""The per-sample losses of a closed-form landscape, θ ↦ ℓ(θ)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vmap

from noisescape.samples import Batch, TensorSamples


class FunctionLoss:
    """ℓ(θ) of shape (N,); its "samples" are the positions 0 .. N − 1 in that vector.

    Replicas (R, D) are broadcast if the function is ``vectorized``, mapped by ``vmap`` otherwise.
    """

    broadcasts = True

    def __init__(self, losses: Callable[[Tensor], Tensor], start: Tensor, *, vectorized: bool) -> None:
        self.start = start.detach().clone()
        self.vectorized = vectorized
        self.dtype, self.device = start.dtype, start.device
        self.dimension = start.numel()
        self._losses = losses
        self._of_replicas = losses if vectorized else vmap(losses)
        rows = self.start[None] if vectorized else self.start
        with torch.no_grad():
            values = losses(rows)
        if not isinstance(values, Tensor) or values.ndim != rows.ndim or values.shape[-1] == 0:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            expected = "(R, N) for θ of shape (R, D)" if vectorized else "(N,) for θ of shape (D,)"
            raise ValueError(f"losses returned {found}; expected per-sample losses {expected} with N ≥ 1")
        self.positions = torch.arange(values.shape[-1], device=self.device)

    def flat_parameters(self) -> Tensor:
        """A copy of the starting point, (D,)."""
        return self.start.clone()

    def samples(self) -> TensorSamples:
        """The positions, as samples."""
        return TensorSamples(self.positions, self.positions)

    def losses(self, theta: Tensor, batch: Batch, *, data_per_replica: bool = False) -> Tensor:
        """(D,) → (n,), (R, D) → (R, n) at the batch's positions."""
        if theta.ndim == 2:
            values = self._of_replicas(theta)
        elif self.vectorized:
            values = self._losses(theta[None])
            if len(values) != 1:
                raise ValueError(
                    f"this risk holds {len(values)} replicas with data of their own; θ must have shape "
                    f"({len(values)}, {self.dimension})"
                )
            values = values[0]
        else:
            values = self._losses(theta)
        if batch.inputs is self.positions:
            return values
        return values.gather(-1, batch.inputs) if data_per_replica else values[..., batch.inputs]

    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, (n, D) or (R, n, D), by whichever of forward and reverse mode needs fewer passes."""
        if self.dimension <= batch.size:
            columns = []
            for axis in torch.eye(self.dimension, dtype=self.dtype, device=self.device):
                tangent = axis.expand_as(theta).contiguous()
                columns.append(jvp(lambda point: self.losses(point, batch), (theta.detach(),), (tangent,))[1])
            return torch.stack(columns, dim=-1)
        leaf = theta.detach().requires_grad_()
        values = self.losses(leaf, batch)
        rows = [
            torch.autograd.grad(values[..., row].sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            for row in range(batch.size)
        ]
        return torch.stack(rows, dim=-2)

    def bytes_per_sample(self, _batch: Batch) -> int:
        """A closed form is evaluated whole; a nominal figure."""
        return 64
