"""The per-sample losses of a closed-form landscape.

Their "samples" are positions 0 .. N − 1 in the vector of losses, which is evaluated whole unless a minibatch
asks for less.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import jvp, vmap

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk.samples import Batch, TensorSamples, digest


class ClosedForm(ABC):
    """ℓ(θ) of shape (N,), from code rather than from a model and data."""

    whole = False
    """Whether all samples must be evaluated together."""

    def __init__(self, start: Tensor) -> None:
        if not isinstance(start, Tensor):
            raise InvalidTypeError(f"parameters must be a flat torch.Tensor (D,), not {type(start).__name__}")
        if start.ndim != 1 or not start.is_floating_point():
            raise InvalidValueError(
                f"parameters must be a flat floating-point vector (D,), not {start.dtype} of shape "
                f"{tuple(start.shape)}"
            )
        self.start = start.detach().clone()
        self.dtype, self.device = start.dtype, start.device
        self.dimension = start.numel()
        self.sizes = [self.dimension]

    def flat_parameters(self) -> Tensor:
        """A copy of the starting point, (D,)."""
        return self.start.clone()

    def samples(self) -> TensorSamples:
        """The positions, as samples."""
        return TensorSamples(self.positions, self.positions)

    def values(self, theta: Tensor, batch: Batch) -> Tensor:
        """:meth:`losses` without a graph."""
        with torch.no_grad():
            return self.losses(theta, batch)

    def gradients_one_by_one(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, (n, D), each row by a reverse pass of its own."""
        return torch.stack(list(self.single_gradients(theta, batch)))

    def single_gradients(self, theta: Tensor, batch: Batch) -> Iterator[Tensor]:
        """The rows of :meth:`gradients_one_by_one`, one at a time."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            values = self.losses(leaf, batch)
            losses = values.unbind()
        for loss in losses:
            yield torch.autograd.grad(loss, leaf, retain_graph=True, materialize_grads=True)[0]

    def held(self, _theta: Tensor) -> contextlib.AbstractContextManager[None]:
        """Nothing need be in place for a backward pass."""
        return contextlib.nullcontext()

    def fingerprint(self) -> str:
        """A checksum of the starting point and of the losses' kind; a function's code has none."""
        return digest([type(self).__name__, self.start])

    @property
    def tolerance(self) -> float:
        """Relative difference up to which two ways to a derivative give the same."""
        return 1e-8 if self.dtype == torch.float64 else 3e-4

    def bytes_per_sample(self, _batch: Batch) -> int:
        """A closed form is evaluated whole; a nominal figure."""
        return 64

    def _count(self, values: Tensor) -> None:
        """Number the losses found at the start."""
        if values.shape[-1] == 0:
            raise InvalidValueError("there are no losses: an empirical risk is a mean over at least one sample")
        self.positions = torch.arange(values.shape[-1], device=self.device)

    @property
    @abstractmethod
    def probes_single(self) -> bool:
        """Whether a single θ (D,) can be evaluated."""

    @abstractmethod
    def losses(self, theta: Tensor, batch: Batch, *, data_per_replica: bool = False) -> Tensor:
        """(D,) → (n,), (R, D) → (R, n) at the batch's positions."""

    @abstractmethod
    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        """G, (n, D) or (R, n, D)."""


class LossVector(ClosedForm):
    """From θ ↦ ℓ(θ), (D,) → (N,); replicas are mapped by ``vmap``."""

    whole = True

    def __init__(self, losses: Callable[[Tensor], Tensor], start: Tensor) -> None:
        super().__init__(start)
        if not callable(losses):
            raise InvalidTypeError(f"losses must be a function of θ, not {type(losses).__name__}")
        self._losses = losses
        with torch.no_grad():
            values = losses(self.start)
        if not isinstance(values, Tensor) or values.ndim != 1:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidValueError(
                f"losses returned {found} for θ of shape ({self.dimension},); expected one loss a sample, (N,)"
            )
        self._count(values)

    @property
    def probes_single(self) -> bool:
        """Always."""
        return True

    def losses(self, theta: Tensor, batch: Batch, *, data_per_replica: bool = False) -> Tensor:
        """The whole vector, or its entries at the batch's positions."""
        values = self._losses(theta) if theta.ndim == 1 else vmap(self._losses)(theta)
        if batch.inputs is self.positions:
            return values
        return values.gather(-1, batch.inputs) if data_per_replica else values[..., batch.inputs]

    @torch.enable_grad()
    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        """By whichever of forward and reverse mode needs fewer passes."""
        if self.dimension <= batch.size:
            with contextlib.suppress(NotImplementedError, RuntimeError):  # no forward derivative
                return self._gradients_by_columns(theta, batch)
        leaf = theta.detach().requires_grad_()
        values = self.losses(leaf, batch)
        rows = [
            torch.autograd.grad(values[..., row].sum(), leaf, retain_graph=True, materialize_grads=True)[0]
            for row in range(batch.size)
        ]
        return torch.stack(rows, dim=-2)

    def _gradients_by_columns(self, theta: Tensor, batch: Batch) -> Tensor:
        columns = []
        for axis in torch.eye(self.dimension, dtype=self.dtype, device=self.device):
            tangent = axis.expand_as(theta).contiguous()
            columns.append(jvp(lambda point: self.losses(point, batch), (theta.detach(),), (tangent,))[1])
        return torch.stack(columns, dim=-1)


class SampleLoss(ClosedForm):
    """From (θ, x) ↦ ℓ(θ; x), broadcasting over leading dimensions; data (N, ...), or (R, N, ...).

    All per-sample gradients are one reverse pass: each sample gets a θ of its own.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], data: Tensor, start: Tensor) -> None:
        super().__init__(start)
        if not callable(loss):
            raise InvalidTypeError(f"loss must be a function (θ, x), not {type(loss).__name__}")
        if not isinstance(data, Tensor):
            raise InvalidTypeError(f"data must be a torch.Tensor (N, ...), not {type(data).__name__}")
        if data.device != self.device:
            raise InvalidValueError(
                f"mixed devices: parameters are on {self.device}, data on {data.device}; move one with .to()"
            )
        self._loss = loss
        self._data = data
        with torch.no_grad():
            values = loss(self.start[None], data)
        if not isinstance(values, Tensor):
            raise InvalidTypeError(f"loss returned {type(values).__name__}, not a tensor")
        if values.ndim not in (1, 2) or values.shape != data.shape[: values.ndim]:
            raise InvalidValueError(
                f"loss of θ (1, {self.dimension}) and data {tuple(data.shape)} has shape "
                f"{tuple(values.shape)}; expected one value a sample: the data's leading (N,) or (R, N)"
            )
        self._data_per_replica = values.ndim == 2
        self._count(values)

    def fingerprint(self) -> str:
        """As of any closed form, and the data."""
        return super().fingerprint() + digest(self._data)

    @property
    def probes_single(self) -> bool:
        """Unless every replica has data of its own."""
        return not self._data_per_replica

    def losses(self, theta: Tensor, batch: Batch, *, data_per_replica: bool = False) -> Tensor:
        """ℓ(θ; x) at the batch's samples."""
        self._check_replicas(theta)
        return self._loss(theta[..., None, :], self._chosen(batch, data_per_replica))

    @torch.enable_grad()
    def gradients(self, theta: Tensor, batch: Batch) -> Tensor:
        """One reverse pass over a θ for each sample."""
        self._check_replicas(theta)
        data = self._chosen(batch, False)
        shape = (*theta.shape[:-1], batch.size, self.dimension)
        # parameters as planes: a loss that takes them apart then reads contiguous memory
        planes = theta.detach()[..., None, :].expand(shape).movedim(-1, 0).contiguous()
        leaf = planes.movedim(0, -1).requires_grad_()
        values = self._loss(leaf, data)
        return torch.autograd.grad(values.sum(), leaf, materialize_grads=True)[0]

    def _chosen(self, batch: Batch, gathered: bool) -> Tensor:
        if batch.inputs is self.positions:
            return self._data
        if self._data_per_replica and gathered:
            rows = torch.arange(len(self._data), device=self.device)[:, None]
            return self._data[rows, batch.inputs]
        return self._data[:, batch.inputs] if self._data_per_replica else self._data[batch.inputs]

    def _check_replicas(self, theta: Tensor) -> None:
        if self._data_per_replica and theta.shape[:-1] != self._data.shape[:1]:
            raise InvalidValueError(
                f"this risk holds {len(self._data)} replicas with data of their own; θ must have shape "
                f"({len(self._data)}, {self.dimension}), not {tuple(theta.shape)}"
            )
