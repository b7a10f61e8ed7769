"""The second moment E δδᵀ of a deviation under random curvatures, as a linear map of small symmetric matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from noisescape.errors import InvalidValueError

FLAT = 1e-9
"""Curvature below this share of the largest counts as none."""


class Forms(ABC):
    """B_n = WᵀH_nW of every sample, (m, m) each, for some directions W."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(1/N) Σ_n B_n, (m, m)."""

    @abstractmethod
    def second(self, moment: Tensor) -> Tensor:
        """(1/N) Σ_n B_nXB_n, (m, m)."""

    @abstractmethod
    def along(self, vectors: Tensor) -> Forms:
        """VᵀB_nV, for V (m, r)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """B_n themselves, (N, m, m)."""


@dataclass(frozen=True)
class HeldForms(Forms):
    """B_n as they are, (N, m, m)."""

    forms: Tensor

    @property
    def mean(self) -> Tensor:
        """See :class:`Forms`."""
        return self.forms.mean(0)

    def second(self, moment: Tensor) -> Tensor:
        """See :class:`Forms`."""
        return (self.forms @ moment @ self.forms).mean(0)

    def along(self, vectors: Tensor) -> HeldForms:
        """See :class:`Forms`."""
        return HeldForms(vectors.mT @ self.forms @ vectors)

    def dense(self) -> Tensor:
        """See :class:`Forms`."""
        return self.forms


@dataclass(frozen=True)
class FactoredForms(Forms):
    """B_n = R_nᵀR_n with R_n of few rows, (N, F, m): F/m of the work."""

    roots: Tensor

    @property
    def mean(self) -> Tensor:
        """See :class:`Forms`."""
        flat = self.roots.flatten(0, 1)
        return flat.mT @ flat / len(self.roots)

    def second(self, moment: Tensor) -> Tensor:
        """See :class:`Forms`."""
        inner = (self.roots @ moment) @ self.roots.mT
        return self.roots.flatten(0, 1).mT @ (inner @ self.roots).flatten(0, 1) / len(self.roots)

    def along(self, vectors: Tensor) -> FactoredForms:
        """See :class:`Forms`."""
        return FactoredForms(self.roots @ vectors)

    def dense(self) -> Tensor:
        """See :class:`Forms`."""
        return self.roots.mT @ self.roots


def worst_deviation(projected: Forms, sampling: float, start: Tensor | None = None) -> tuple[float, Tensor]:
    """max ⟨X, D X⟩/⟨X, C X⟩ over symmetric X, and the X, PSD, which has it; ``start`` is one that is near."""
    mean = projected.mean
    values, vectors = torch.linalg.eigh(mean)
    scale = float(values.abs().max())
    if not scale > 0:
        raise InvalidValueError("no sample's loss has any curvature here: every learning rate is stable")
    if float(values[0]) < -(FLAT**0.5) * scale:
        raise InvalidValueError(
            f"θ is no minimum: H has the curvature {float(values[0]):.3g} along a direction, beside a largest of "
            f"{scale:.3g}, and a deviation along it grows at every learning rate; go on to a minimum, or take "
            "curvature='gauss-newton'"
        )
    curved = values > FLAT * scale
    values, vectors = values[curved], vectors[:, curved]
    own = projected.along(vectors)
    root = ((values[:, None] + values) / 2).rsqrt()
    diagonal = values.diag()

    def symmetrised(moment: Tensor) -> Tensor:
        return root * _second(own, sampling, diagonal, root * moment)

    near = torch.eye(len(mean), dtype=mean.dtype) if start is None else start
    quotient, found = _largest(symmetrised, (vectors.mT @ near @ vectors) / root)
    sizes, axes = torch.linalg.eigh(root * found)
    if float(sizes.sum()) < 0:
        sizes = -sizes
    # of several X with one quotient the solver gives any mixture, whose positive part has that quotient as well
    moment = vectors @ ((axes * sizes.clamp_min(0)) @ axes.mT) @ vectors.mT
    return quotient, moment


def growth(projected: Forms, sampling: float, lr: float) -> float:
    """The spectral radius of T(M) = M − η(HM + MH) + η²[(1−p)HMH + p·mean H_nMH_n] among these."""
    values, vectors = torch.linalg.eigh(projected.mean)
    projected = projected.along(
        vectors[:, values > FLAT * values.abs().max()]
    )  # flat ones neither grow nor die out
    start = torch.eye(len(projected.mean), dtype=projected.mean.dtype)
    return _largest(lambda moment: after_step(projected, sampling, lr, moment), start)[0]


def after_step(projected: Forms, sampling: float, lr: float, moment: Tensor) -> Tensor:
    """T(M) = E (I − ηH_b)M(I − ηH_b), M the second moment of the deviation before the step, (m, m)."""
    mean = projected.mean
    drift = mean @ moment
    return moment - lr * (drift + drift.mT) + lr**2 * _second(projected, sampling, mean, moment)


def _second(samples: Forms, sampling: float, mean: Tensor, moment: Tensor) -> Tensor:
    """(1−p)HXH + p·mean H_nXH_n."""
    return (1 - sampling) * mean @ moment @ mean + sampling * samples.second(moment)


def _largest(step: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """The largest eigenvalue of a linear map of symmetric matrices, and its eigenmatrix."""
    size = len(start)

    def product(flat: np.ndarray) -> np.ndarray:
        moment = torch.from_numpy(flat).reshape(size, size)
        result: np.ndarray = step((moment + moment.mT) / 2).numpy().ravel()
        return result

    if size < 3:  # ARPACK wants more
        columns = np.stack([product(axis) for axis in np.eye(size * size)], axis=1)
        values, vectors = np.linalg.eigh((columns + columns.T) / 2)
    else:
        operator = LinearOperator((size * size, size * size), matvec=product, dtype=np.float64)
        values, vectors = eigsh(operator, 1, which="LA", v0=start.numpy().ravel())
    found = torch.from_numpy(vectors[:, -1].copy()).reshape(size, size)
    return float(values[-1]), (found + found.mT) / 2
