"""Operators whose structure is known: the covariances of the simpler dynamics.

Each may carry leading replica dimensions: a (R, D) diagonal is R covariances, and ``sample(1)`` then
draws one vector for each. Draws, traces, diagonals, leading pairs and scaling are those of all of them; products
and what is estimated from them are of a single one, which :meth:`replica` gives.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from noisescape.errors import InvalidValueError
from noisescape.linops.operator import Split, SymmetricOperator
from noisescape.linops.precision import check_dtype, check_tensor
from noisescape.linops.tall import inner_products, left_singular


class HeldOperator(SymmetricOperator):
    """An operator given by one tensor, replicas in its leading dimensions."""

    tensor: Tensor

    @abstractmethod
    def of(self, tensor: Tensor) -> HeldOperator:
        """The operator of this kind and name given by ``tensor``."""

    @abstractmethod
    def scaled(self, factor: Tensor | float) -> HeldOperator:
        """factor·A, with one factor ≥ 0 for each replica."""

    @override
    def _replica(self, index: int) -> SymmetricOperator:
        return self.of(self.tensor[index])


class DiagonalOperator(HeldOperator):
    """diag(d), from d of shape (D,), or (R, D) for R replicas."""

    def __init__(self, values: Tensor, *, name: str = "diagonal") -> None:
        check_tensor(values, name)
        super().__init__(
            values.shape[-1],
            dtype=values.dtype,
            device=values.device,
            psd=not bool((values < 0).any()),  # NaN stays: where all overflows it is drawn
            name=name,
        )
        self.tensor = self.values = values
        self.replicas = tuple(values.shape[:-1])

    @override
    def of(self, tensor: Tensor) -> DiagonalOperator:
        return DiagonalOperator(tensor, name=self.name)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.values[:, None] * block

    def diagonal(self) -> Tensor:
        """d itself, (D,) or (R, D)."""
        return self.values.clone()

    def trace(self) -> Tensor:
        """Σ d, a scalar, or (R,)."""
        return self.values.sum(-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """√d·z, (count, D), or (count, R, D)."""
        if not self.psd:
            return super().sample(count, generator)
        noise = torch.randn(count, *self.values.shape, generator=generator, dtype=self.dtype, device=self.device)
        return noise * self.values.sqrt()

    @override
    def scaled(self, factor: Tensor | float) -> DiagonalOperator:
        factor = torch.as_tensor(factor, dtype=self.dtype, device=self.device)
        return DiagonalOperator(self.values * factor[..., None], name=self.name)


class IsotropicOperator(DiagonalOperator):
    """s·I, from s of shape () or (R,)."""

    def __init__(self, variance: Tensor, size: int, *, name: str = "isotropic") -> None:
        check_tensor(variance, name)
        super().__init__(variance[..., None].expand(*variance.shape, size), name=name)
        self.variance = variance

    def _replica(self, index: int) -> SymmetricOperator:
        return IsotropicOperator(self.variance[index], self.size, name=self.name)

    def leading(self, k: int) -> tuple[Tensor, Tensor]:
        """s, k times, along the first coordinates (every direction leads equally): (k,) and (D, k), or with R."""
        basis = torch.eye(self.size, k, dtype=self.dtype, device=self.device)
        return self.values[..., :k].clone(), basis.expand(*self.replicas, self.size, k)


class DeviationsOperator(HeldOperator):
    """diag(σ²), from standard deviations σ of shape (D,) or (R, D): draws and scaling take them as they are."""

    def __init__(self, deviations: Tensor, *, name: str = "diagonal") -> None:
        check_tensor(deviations, name)
        super().__init__(
            deviations.shape[-1], dtype=deviations.dtype, device=deviations.device, psd=True, name=name
        )
        self.tensor = self.deviations = deviations
        self.replicas = tuple(deviations.shape[:-1])

    @override
    def of(self, tensor: Tensor) -> DeviationsOperator:
        return DeviationsOperator(tensor, name=self.name)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.deviations.square()[:, None] * block

    @override
    def diagonal(self) -> Tensor:
        return self.deviations.square()

    @override
    def trace(self) -> Tensor:
        return self.deviations.square().sum(-1)

    @override
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        shape = (count, *self.deviations.shape)
        return self.deviations * torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)

    @override
    def scaled(self, factor: Tensor | float) -> DeviationsOperator:
        factor = torch.as_tensor(factor, dtype=self.dtype, device=self.device)
        return self.of(self.deviations * factor.sqrt()[..., None])


class LowRankOperator(HeldOperator):
    """F Fᵀ, from a factor F of shape (D, k), or (R, D, k) for R replicas."""

    def __init__(self, factor: Tensor, *, name: str = "low-rank") -> None:
        check_tensor(factor, name)
        super().__init__(factor.shape[-2], dtype=factor.dtype, device=factor.device, psd=True, name=name)
        self.tensor = self.factor = factor
        self.replicas = tuple(factor.shape[:-2])

    @override
    def of(self, tensor: Tensor) -> LowRankOperator:
        return LowRankOperator(tensor, name=self.name)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.factor @ inner_products(self.factor.mT, block)

    def diagonal(self) -> Tensor:
        """Row sums of F², (D,) or (R, D)."""
        return self.factor.square().sum(-1)

    def trace(self) -> Tensor:
        """‖F‖²_F, a scalar, or (R,)."""
        return self.factor.square().sum((-2, -1))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """F z with z ~ N(0, I_k): (count, D), or (count, R, D)."""
        *replicas, _, rank = self.factor.shape
        noise = torch.randn(count, *replicas, rank, 1, generator=generator, dtype=self.dtype, device=self.device)
        if not replicas:
            return (self.factor @ noise[..., 0].mT).mT
        return (self.factor @ noise)[..., 0]

    def leading(self, k: int) -> tuple[Tensor, Tensor]:
        """Exact, from the singular values of F: (k,) and (D, k), or with R; fewer than k pairs of a lower rank."""
        check_dtype(self.dtype, self.name)
        vectors, singular = left_singular(self.factor)
        return singular[..., :k].square(), vectors[..., :k]

    def split(self, k: int) -> Split:
        """C = FV with F's leading right singular vectors V, so that C carries as much as k columns can."""
        self.check_single()
        check_dtype(self.dtype, self.name)
        _, singular, rows = torch.linalg.svd(self.factor, full_matrices=False)
        floor = max(self.factor.shape) * torch.finfo(self.dtype).eps * singular[:1]
        rank = int((singular > floor).sum())
        return Split(lambda weights: self.factor @ weights, rows[: min(k, rank)].mT, k >= rank)

    @override
    def scaled(self, factor: Tensor | float) -> LowRankOperator:
        factor = torch.as_tensor(factor, dtype=self.dtype, device=self.device)
        return self.of(self.factor * factor.sqrt()[..., None, None])


class DenseOperator(SymmetricOperator):
    """A symmetric matrix that is at hand."""

    def __init__(self, matrix: Tensor, *, psd: bool = False, name: str = "matrix") -> None:
        check_tensor(matrix, name)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidValueError(f"{name} must be square, not of shape {tuple(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise InvalidValueError(f"{name} has entries that are not finite")
        if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(matrix.abs().max())):
            raise InvalidValueError(f"{name} is not symmetric; pass (M + M.T) / 2 if that is what is meant")
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device, psd=psd, name=name)
        self.matrix = matrix

    def _matmat(self, block: Tensor) -> Tensor:
        return self.matrix @ block

    def dense(self) -> Tensor:
        """A copy of the matrix."""
        return self.matrix.clone()

    def diagonal(self) -> Tensor:
        """Read off."""
        return self.matrix.diagonal().clone()


def with_trace(operator: SymmetricOperator, wanted: Tensor | float) -> SymmetricOperator:
    """cA, with c such that its trace is ``wanted``, () or (R,) for replicas; 0 where A has no trace to scale."""
    present = operator.trace()
    tiny = torch.finfo(present.dtype).tiny
    # filled where it is, not copied there: a copy would wait for the device
    wanted = wanted.to(present) if isinstance(wanted, Tensor) else torch.full_like(present, wanted)
    factor = torch.where(present > tiny, wanted / present.clamp_min(tiny), 0.0)
    return operator.scaled(factor) if isinstance(operator, HeldOperator) else operator * float(factor)
