"""An architecture, what is asked of it, and its figures by plain autograd.

The reference never calls the package. It runs a second copy of the module, into which θ is loaded, one sample at
a time: gradients are one reverse pass, products with the Hessian two, Gauss–Newton products explicit Jacobians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from cases import F64, normal
from noisescape.risk import EmpiricalRisk

BATCH_SIZE = 3


@dataclass
class Architecture:
    """How to build a model and its data, and what is asked of it.

    Attributes:
        build: the module, its parameters drawn from the global generator.
        data: (inputs, targets), or a list of such batches.
        loss: as given to the risk.
        reference: builds the module of the reference, in double precision, where that must be another one.
        gauss_newton: whether outputs are one tensor and the loss is convex in them.
        tolerance: relative, of values and first derivatives.
        second_tolerance: relative, of second derivatives.
        twice_differentiable: whether plain autograd has second derivatives; else products with H may be refused.
        dtype: of the risk; the reference is always in double precision.
        step: of the central differences that check the reference.
        used_before: whether gradients are first asked for at the module's own parameters, where some are 0:
            what is decided on first use must not hang on that.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Callable[..., Any] = F.cross_entropy
    reference: Callable[[], nn.Module] | None = None
    gauss_newton: bool = True
    tolerance: float = 1e-8
    second_tolerance: float = 1e-8
    twice_differentiable: bool = True
    dtype: torch.dtype = F64
    step: float = 1e-4
    used_before: bool = False

    @functools.cached_property
    def subject(self) -> Examined:
        return Examined(self)


@contextmanager
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def samples_of(data: Any) -> list[tuple[Any, Any]]:
    """Every sample as a batch of one."""
    batches = data if isinstance(data, list) else [data]
    singles = []
    for inputs, targets in batches:
        for n in range(len(targets)):

            def one(leaf: Any, n: int = n) -> Any:
                return leaf[n : n + 1] if isinstance(leaf, Tensor) else leaf

            singles.append(tree_map(one, (inputs, targets)))
    return singles


def cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


class Examined:
    """A risk over an architecture, and the reference's figures at one θ; everything is computed once."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        data = architecture.data()
        with seeded():
            model = architecture.build().to(architecture.dtype)
        with seeded():
            self.reference = (architecture.reference or architecture.build)().to(F64)
        self.samples = samples_of(data)
        self.trainable = [p for p in self.reference.parameters() if p.requires_grad]
        own = torch.cat([p.detach().reshape(-1) for p in self.trainable])
        # away from the module's own parameters, so that using those by mistake shows
        self.theta = (own + 0.1 * normal(len(own), seed=11)).to(architecture.dtype)
        with torch.no_grad():
            parts = self.theta.split([p.numel() for p in self.trainable])
            for parameter, part in zip(self.trainable, parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        self.directions = normal(len(own), 3, seed=8)
        self._model = model
        self._data = tree_map(lambda leaf: cast(leaf, architecture.dtype), data)

    @functools.cached_property
    def _risk_or_error(self) -> EmpiricalRisk | Exception:
        try:
            risk = EmpiricalRisk(self._model, self.architecture.loss, self._data)
            if self.architecture.used_before:
                risk.per_sample_gradients(risk.parameters())
            return risk
        except Exception as error:  # kept: every test of this architecture reports it without building anew
            return error

    @property
    def given(self) -> Tensor:
        """The directions as the risk takes them."""
        return self.directions.to(self.architecture.dtype)

    @property
    def risk(self) -> EmpiricalRisk:
        if isinstance(self._risk_or_error, Exception):
            raise self._risk_or_error.with_traceback(None)
        return self._risk_or_error

    # ------------------------------------------------------------------ plain autograd

    def outputs(self, inputs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            if isinstance(inputs, dict):
                return self.reference(**inputs)
            return self.reference(*inputs) if isinstance(inputs, tuple) else self.reference(inputs)

    def value(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch of one; beyond one value a sample, their mean."""
        return self.architecture.loss(outputs, targets).mean()

    def gradient(self, value: Tensor, **options: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # checkpoints run the forward pass again
            found = torch.autograd.grad(value, self.trainable, allow_unused=True, **options)
        parts = [
            torch.zeros_like(p) if part is None else part for p, part in zip(self.trainable, found, strict=True)
        ]
        return torch.cat([part.reshape(-1) for part in parts])

    @functools.cached_property
    def first(self) -> tuple[Tensor, Tensor]:
        """ℓ and G."""
        values, rows = [], []
        for inputs, targets in self.samples:
            value = self.value(self.outputs(inputs), targets)
            values.append(value.detach())
            rows.append(self.gradient(value).detach())
        return torch.stack(values), torch.stack(rows)

    @property
    def losses(self) -> Tensor:
        return self.first[0]

    @property
    def rows(self) -> Tensor:
        return self.first[1]

    @property
    def centred(self) -> Tensor:
        return self.rows - self.rows.mean(0)

    @functools.cached_property
    def hessian_columns(self) -> Tensor:
        """H times the three directions and the N centred gradients, (D, 3 + N)."""
        columns = torch.cat([self.directions, self.centred.T], dim=1)
        total = torch.zeros_like(columns)
        for inputs, targets in self.samples:
            if self.architecture.twice_differentiable:
                gradient = self.gradient(self.value(self.outputs(inputs), targets), create_graph=True)
                for k, column in enumerate(columns.T):
                    along = gradient @ column
                    if along.requires_grad:
                        total[:, k] += self.gradient(along, retain_graph=True)
            else:
                for k, column in enumerate(columns.T):
                    total[:, k] += self.difference(inputs, targets, column)
        return total / len(self.samples)

    def difference(self, inputs: Any, targets: Any, direction: Tensor) -> Tensor:
        """The derivative of a sample's gradient by central differences of fourth order."""
        step = self.architecture.step
        total = torch.zeros_like(direction)
        unit = direction / direction.norm()
        parts = unit.split([p.numel() for p in self.trainable])
        kept = [p.detach().clone() for p in self.trainable]
        for multiple, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            with torch.no_grad():
                for parameter, part, start in zip(self.trainable, parts, kept, strict=True):
                    parameter.copy_(start + multiple * step * part.view_as(parameter))
            total += weight * self.gradient(self.value(self.outputs(inputs), targets)) / (12 * step)
        with torch.no_grad():
            for parameter, start in zip(self.trainable, kept, strict=True):
                parameter.copy_(start)
        return total * direction.norm()

    @property
    def hessian_products(self) -> Tensor:
        return self.hessian_columns[:, :3]

    @property
    def indicator(self) -> float:
        """Tr(HΣ_B) = (1/NB) Σ_n d_nᵀHd_n, d_n the centred gradients."""
        return float((self.hessian_columns[:, 3:] * self.centred.T).sum()) / len(self.samples) / BATCH_SIZE

    @property
    def noise_products(self) -> Tensor:
        return self.centred.T @ (self.centred @ self.directions) / len(self.samples) / BATCH_SIZE

    @functools.cached_property
    def gauss_newton_products(self) -> Tensor:
        """(1/N) Σ Jᵀ(∇²ℓ)J times the directions, J one output after the other."""
        total = torch.zeros_like(self.directions)
        for inputs, targets in self.samples:
            outputs = self.outputs(inputs)
            flat = outputs.reshape(-1)
            jacobian = torch.stack([self.gradient(output, retain_graph=True) for output in flat]).detach()

            def loss(point: Tensor, shape: torch.Size = outputs.shape, targets: Any = targets) -> Tensor:
                return self.value(point.view(shape), targets)

            # some models return single precision, whatever their parameters are
            curvature = torch.autograd.functional.hessian(loss, flat.detach().double())
            total += jacobian.T @ (curvature @ (jacobian @ self.directions))
        return total / len(self.samples)
