"""The second moment E δδᵀ of a deviation under random curvatures, as a linear map of small symmetric matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from noisescape.errors import InvalidValueError

FLAT = 1e-9
"""Curvature below this share of the largest counts as none."""


def worst_deviation(projected: Tensor, sampling: float) -> tuple[float, Tensor]:
    """max ⟨X, D X⟩/⟨X, C X⟩ over symmetric X, and the X, PSD, which has it."""
    mean = projected.mean(0)
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
    own = vectors.mT @ projected @ vectors
    root = ((values[:, None] + values) / 2).rsqrt()
    diagonal = values.diag()

    def symmetrised(moment: Tensor) -> Tensor:
        return root * _second(own, sampling, diagonal, root * moment)

    quotient, found = _largest(symmetrised, torch.eye(len(values), dtype=values.dtype))
    moment = vectors @ (root * found) @ vectors.mT
    return quotient, moment * moment.trace().sign()


def growth(projected: Tensor, sampling: float, lr: float) -> float:
    """The spectral radius of T(M) = M − η(HM + MH) + η²[(1−p)HMH + p·mean H_nMH_n], H_n of shape (N, m, m)."""
    start = torch.eye(projected.shape[-1], dtype=projected.dtype)
    return _largest(lambda moment: after_step(projected, sampling, lr, moment), start)[0]


def after_step(projected: Tensor, sampling: float, lr: float, moment: Tensor) -> Tensor:
    """T(M) = E (I − ηH_b)M(I − ηH_b), M the second moment of the deviation before the step, (m, m)."""
    mean = projected.mean(0)
    drift = mean @ moment
    return moment - lr * (drift + drift.mT) + lr**2 * _second(projected, sampling, mean, moment)


def _second(samples: Tensor, sampling: float, mean: Tensor, moment: Tensor) -> Tensor:
    """(1−p)HXH + p·mean H_nXH_n."""
    return (1 - sampling) * mean @ moment @ mean + sampling * (samples @ moment @ samples).mean(0)


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
