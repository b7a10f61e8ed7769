"""Symmetric linear operators: what can be asked of a D × D matrix that is never formed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from typing_extensions import override

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.linops.precision import check_dtype, full_precision
from noisescape.linops.probing import BLOCK, COLUMN_BYTES
from noisescape.linops.tall import inner_product, project_out

DENSE_LIMIT = 20_000
_LINEAR_ALGEBRA = ("dense", "diagonal", "trace", "sample", "leading", "principal", "split", "quadratic_forms")
"""Methods that subclasses override; an autocast must not lower the precision of any of them."""


@dataclass(frozen=True)
class Split:
    """A = FFᵀ = CCᵀ + RRᵀ with C = FV and R = F(I − VVᵀ): a few columns that carry most of A, and the rest.

    C, which may be large, is not held: its columns are computed on request.

    Attributes:
        factor: z ↦ Fz, (M, K) → (D, K).
        carried: V, orthonormal columns, (M, k).
        exhausted: whether R is 0.
    """

    factor: Callable[[Tensor], Tensor]
    carried: Tensor
    exhausted: bool

    @full_precision
    def columns(self, chosen: slice = slice(None)) -> Tensor:
        """C, or some of it, (D, k)."""
        return self.factor(self.carried[:, chosen])

    @full_precision
    def rest(self, noise: Tensor) -> Tensor:
        """Rz, (M, K) → (D, K)."""
        return self.factor(project_out(self.carried, noise))


@dataclass(frozen=True)
class SampleMean:
    """A = (1/N) Σ_n A_n, over samples.

    Attributes:
        count: N.
        of_one: n ↦ A_n.
    """

    count: int
    of_one: Callable[[int], SymmetricOperator]


@dataclass(frozen=True)
class SampleColumns:
    """B = (1/N) Σ_n f_n f_nᵀ, over samples.

    Attributes:
        count: N.
        at: some of the samples, (k,) ↦ their f_n, (D, k).
    """

    count: int
    at: Callable[[Tensor], Tensor]


class SymmetricOperator(ABC):
    """A symmetric D × D matrix known through its products with vectors.

    Args:
        size: D.
        dtype: of the vectors it takes and returns.
        device: of the vectors it takes and returns.
        psd: whether the matrix is known to be positive semi-definite. A tag, not a check.
        name: used in messages and tables.

    ``A @ v`` takes a vector (D,) or a block of K columns (D, K); a block is cheaper than K vectors.
    ``products`` counts the columns multiplied so far: the unit in which estimators report their cost.
    ``column_bytes`` bounds what estimators let blocks of columns take.
    ``replicas`` is the shape of the operators held side by side, () for a single one: only that can multiply.

    All of it runs in the operands' own precision, whatever autocast is in force around it.
    """

    replicas: tuple[int, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in _LINEAR_ALGEBRA:
            if name in cls.__dict__:
                setattr(cls, name, full_precision(cls.__dict__[name]))

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device | str, psd: bool, name: str) -> None:
        self.size = size
        self.dtype = dtype
        self.device = torch.device(device)
        self.psd = psd
        self.name = name
        self.products = 0
        self.column_bytes = COLUMN_BYTES

    def columns_that_fit(self, wanted: int) -> int:
        """How many of the columns wanted, of D numbers each, fit into ``column_bytes``; 0 if not one does."""
        return min(wanted, self.column_bytes // (self.size * self.dtype.itemsize))

    @property
    def block(self) -> int:
        """How many columns to work on at once: enough to batch, few enough to fit with their images and copies."""
        return max(1, self.columns_that_fit(4 * BLOCK) // 4)

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        return (self.size, self.size)

    def __repr__(self) -> str:
        kind = "PSD, " if self.psd else ""
        return f"{self.name}({self.size} × {self.size}, {kind}{self.dtype}, {self.device})"

    @abstractmethod
    def _matmat(self, block: Tensor) -> Tensor:
        """The product with a block of columns, (D, K) → (D, K)."""

    def check_single(self) -> None:
        """Refuse several replicas where a single operator is needed.

        Raises:
            ValueError: there are replicas.
        """
        if self.replicas:
            raise InvalidValueError(
                f"{self.name} is {math.prod(self.replicas)} operators, one for each replica; "
                "take one of them with .replica(r)"
            )

    def replica(self, index: int) -> SymmetricOperator:
        """The operator of one replica.

        Raises:
            ValueError: there are no replicas.
        """
        if not self.replicas:
            raise InvalidValueError(f"{self.name} is a single operator and has no replica {index}")
        return self._replica(index)

    def _replica(self, index: int) -> SymmetricOperator:
        raise NotImplementedError(f"{type(self).__name__} has replicas and must say what one of them is")

    @full_precision
    def __matmul__(self, other: Tensor) -> Tensor:
        if not isinstance(other, Tensor):
            raise InvalidTypeError(f"{self.name} @ x takes a torch.Tensor, not {type(other).__name__}")
        self.check_single()
        if other.ndim not in (1, 2) or other.shape[0] != self.size:
            raise InvalidValueError(
                f"{self.name} is {self.size} × {self.size}; it multiplies a vector ({self.size},) or "
                f"columns ({self.size}, K), not a tensor of shape {tuple(other.shape)}"
            )
        if other.dtype != self.dtype or other.device != self.device:
            raise InvalidValueError(
                f"{self.name} holds {self.dtype} on {self.device}, but was given {other.dtype} on "
                f"{other.device}; convert the vector with .to({self.dtype}).to('{self.device}')"
            )
        self.products += 1 if other.ndim == 1 else other.shape[1]
        if other.ndim == 1:
            return self._matmat(other[:, None])[:, 0]
        if other.shape[1] == 0:
            return other.clone()
        return self._matmat(other)

    @full_precision
    def dense(self) -> Tensor:
        """The D × D matrix itself; for small D.

        Raises:
            ValueError: if D is over 20,000 (3 GiB in float64), or there are replicas.
        """
        self.check_single()
        if self.size > DENSE_LIMIT:
            raise InvalidValueError(
                f"{self.name} is {self.size} × {self.size}, too large to form "
                f"({self.size**2 * 8 / 2**30:.0f} GiB in float64); use products, trace, eigenpairs or "
                "diagonal instead"
            )
        matrix = self @ torch.eye(self.size, dtype=self.dtype, device=self.device)
        return (matrix + matrix.T) / 2

    @property
    def dense_products(self) -> int:
        """How many products :meth:`dense` takes: none where a class holds the matrix."""
        return self.size if type(self).dense is SymmetricOperator.dense else 0

    def diagonal(self) -> Tensor:
        """The exact diagonal, (D,). D products unless the structure gives it for less.

        See :func:`noisescape.linops.diagonal` for an estimate with a standard error when D is large.
        """
        return self.dense().diagonal().clone()

    def trace(self) -> Tensor:
        """The exact trace, a scalar. As expensive as :meth:`diagonal`.

        See :func:`noisescape.linops.trace` for an estimate with a standard error when D is large.
        """
        return self.diagonal().sum()

    @full_precision
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` independent vectors of N(0, A), as rows: (count, D).

        Raises:
            ValueError: if the operator is not known to be positive semi-definite.
            TypeError: its dtype has no eigenvalue solver.
        """
        if not self.psd:
            raise InvalidValueError(f"{self.name} is not known to be positive semi-definite: it is no covariance")
        check_dtype(self.dtype, self.name)
        values, vectors = torch.linalg.eigh(self.dense())
        factor = vectors * values.clamp_min(0).sqrt()
        noise = torch.randn(count, self.size, generator=generator, dtype=self.dtype, device=self.device)
        return noise @ factor.T

    @property
    def samples_cheaply(self) -> bool:
        """Whether draws need no dense factorisation: so it is where a class overrides :meth:`sample`."""
        return type(self).sample is not SymmetricOperator.sample

    def leading(self, k: int) -> tuple[Tensor, Tensor] | None:
        """The k leading eigenpairs where the structure gives them cheaply and exactly, else ``None``."""
        return None

    def principal(self, k: int) -> Tensor | None:
        """An orthonormal basis (D, k) that carries nearly as much of A as any, where that is cheap, else ``None``.

        Fewer columns only where they span the range of A.
        """
        pairs = self.leading(k)
        return None if pairs is None else pairs[1]

    def split(self, k: int) -> Split | None:
        """A = CCᵀ + RRᵀ with k columns in C, where A is held as such a product, else ``None``."""
        return None

    def over_samples(self) -> SampleMean | None:
        """A as a mean over samples, where a product with one's matrix costs about its share, else ``None``."""
        return None

    def columns_of_samples(self) -> SampleColumns | None:
        """A as outer products of samples' columns, where all of those cost about one product, else ``None``."""
        return None

    @property
    def factored(self) -> bool:
        """Whether A is held as a product of factors: so it is where a class overrides :meth:`split`."""
        return type(self).split is not SymmetricOperator.split

    @full_precision
    def quadratic_forms(self, columns: Tensor) -> Tensor:
        """vᵀAv of each column, (D, K) → (K,)."""
        images = self @ columns
        if columns.shape[1] == 1:  # a third vector may not fit
            return inner_product(columns[:, 0], images[:, 0])[None]
        return (columns * images).sum(0)

    def __mul__(self, factor: float) -> SymmetricOperator:
        return ScaledOperator(self, float(factor))

    __rmul__ = __mul__

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        return SumOperator(self, other)

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` over NumPy arrays, for SciPy's solvers."""

        def matmat(block: np.ndarray) -> np.ndarray:
            columns = torch.from_numpy(np.ascontiguousarray(block)).to(self.device, self.dtype)
            return (self @ columns).cpu().numpy()

        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(
            self.shape, matvec=matmat, rmatvec=matmat, matmat=matmat, rmatmat=matmat, dtype=numpy_dtype
        )


class FunctionOperator(SymmetricOperator):
    """An operator from a function that multiplies a block of columns, (D, K) → (D, K).

    ``sampler(count, generator)``, if given, returns (count, D) draws of N(0, A).
    """

    def __init__(
        self,
        matmat: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        psd: bool = False,
        name: str = "operator",
        sampler: Callable[[int, torch.Generator | None], Tensor] | None = None,
    ) -> None:
        super().__init__(size, dtype=dtype, device=device, psd=psd, name=name)
        self._function = matmat
        self._sampler = sampler

    @override
    def _matmat(self, block: Tensor) -> Tensor:
        return self._function(block)

    @property
    @override
    def samples_cheaply(self) -> bool:
        return self._sampler is not None

    @override
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        if self._sampler is None:
            return super().sample(count, generator)
        return self._sampler(count, generator)


class ScaledOperator(SymmetricOperator):
    """c·A; keeps A's structure."""

    def __init__(self, operator: SymmetricOperator, factor: float) -> None:
        super().__init__(
            operator.size,
            dtype=operator.dtype,
            device=operator.device,
            psd=operator.psd and factor >= 0,
            name=f"{factor:g}·{operator.name}",
        )
        self.operator = operator
        self.factor = factor
        self.column_bytes = operator.column_bytes
        self.replicas = operator.replicas

    @override
    def _replica(self, index: int) -> SymmetricOperator:
        return ScaledOperator(self.operator.replica(index), self.factor)

    @override
    def _matmat(self, block: Tensor) -> Tensor:
        return self.factor * (self.operator @ block)

    @property
    @override
    def samples_cheaply(self) -> bool:
        return self.operator.samples_cheaply

    @override
    def diagonal(self) -> Tensor:
        return self.factor * self.operator.diagonal()

    @override
    def trace(self) -> Tensor:
        return self.factor * self.operator.trace()

    @override
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        if not self.psd:
            return super().sample(count, generator)
        return self.factor**0.5 * self.operator.sample(count, generator)

    @override
    def leading(self, k: int) -> tuple[Tensor, Tensor] | None:
        pairs = self.operator.leading(k) if self.factor >= 0 else None
        return None if pairs is None else (self.factor * pairs[0], pairs[1])

    @override
    def principal(self, k: int) -> Tensor | None:
        return self.operator.principal(k)

    @override
    def split(self, k: int) -> Split | None:
        found = self.operator.split(k) if self.factor >= 0 else None
        if found is None:
            return None
        root, factor = self.factor**0.5, found.factor
        return Split(lambda z: root * factor(z), found.carried, found.exhausted)

    @property
    @override
    def factored(self) -> bool:
        return self.factor >= 0 and self.operator.factored

    @override
    def quadratic_forms(self, columns: Tensor) -> Tensor:
        self.products += columns.shape[1]
        return self.factor * self.operator.quadratic_forms(columns)


class SumOperator(SymmetricOperator):
    """A + B."""

    def __init__(self, left: SymmetricOperator, right: SymmetricOperator) -> None:
        if left.size != right.size:
            raise InvalidValueError(f"cannot add {left!r} and {right!r}: sizes differ")
        if (left.dtype, left.device) != (right.dtype, right.device):
            raise InvalidValueError(f"cannot add {left!r} and {right!r}: dtypes or devices differ")
        if left.replicas != right.replicas:
            raise InvalidValueError(
                f"cannot add {left!r} and {right!r}: one has replicas {left.replicas}, the other {right.replicas}; "
                "take single ones with .replica(r)"
            )
        super().__init__(
            left.size,
            dtype=left.dtype,
            device=left.device,
            psd=left.psd and right.psd,
            name=f"({left.name} + {right.name})",
        )
        self.left, self.right = left, right
        self.column_bytes = min(left.column_bytes, right.column_bytes)
        self.replicas = left.replicas

    @override
    def _replica(self, index: int) -> SymmetricOperator:
        return SumOperator(self.left.replica(index), self.right.replica(index))

    @override
    def _matmat(self, block: Tensor) -> Tensor:
        return self.left @ block + self.right @ block

    @property
    @override
    def samples_cheaply(self) -> bool:
        return self.left.samples_cheaply and self.right.samples_cheaply

    @override
    def diagonal(self) -> Tensor:
        return self.left.diagonal() + self.right.diagonal()

    @override
    def trace(self) -> Tensor:
        return self.left.trace() + self.right.trace()

    @override
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        if not self.psd:
            return super().sample(count, generator)
        return self.left.sample(count, generator) + self.right.sample(count, generator)


class ProductCount:
    """Products spent on some operators since this was made; an operand given twice counts once."""

    def __init__(self, *operators: SymmetricOperator) -> None:
        self._operators = list({id(operator): operator for operator in operators}.values())
        self._before = self._total()

    def _total(self) -> int:
        return sum(operator.products for operator in self._operators)

    @property
    def spent(self) -> int:
        """How many so far."""
        return self._total() - self._before


def check_operand(operator: SymmetricOperator) -> None:
    """Refuse what no estimator can work on, before it starts.

    Raises:
        TypeError: no operator; a dtype without linear algebra.
        ValueError: several operators, one for each replica.
    """
    if not isinstance(operator, SymmetricOperator):
        raise InvalidTypeError(
            f"a symmetric operator is asked for, not {type(operator).__name__}; of a matrix: DenseOperator(matrix)"
        )
    check_dtype(operator.dtype, operator.name)
    operator.check_single()
