"""Noisy gradient descent on a quadratic, exactly as it is run: in discrete steps."""

from __future__ import annotations

import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.scalars import check_positive, check_whole


def expected_excess_loss(hessian: Tensor, covariance: Tensor, *, lr: float, steps: int) -> Tensor:
    """E L_k − L_0 for L = ½θᵀHθ from θ₀ = 0 under θ ← θ − η(Hθ + ε), Cov ε = Σ constant.

    (η/2) Σ_j S_jj (1 − (1−ηλ_j)^{2k})/(2 − ηλ_j) with S = UᵀΣU in H's eigenbasis: no small-η limit, so it
    holds where ηλ is near 1 as in the 2-D toy, and shows divergence where ηλ > 2.

    Args:
        hessian: H, (D, D), symmetric.
        covariance: Σ of the *gradient* noise, (D, D).
        lr: η.
        steps: k.

    >>> expected_excess_loss(torch.tensor([[2.0]]), torch.tensor([[1.0]]), lr=0.5, steps=10)
    tensor(0.2500)
    """
    check_matrices(hessian, covariance)
    check_positive("lr", lr)
    check_whole("steps", steps, 0)
    values, vectors = torch.linalg.eigh(hessian)
    spread = torch.einsum("ij,ik,kj->j", vectors, covariance, vectors)
    ratio = (1 - lr * values) ** 2
    near_one = (1 - ratio).abs() < 1e-9
    series = torch.where(
        near_one, torch.as_tensor(float(steps), dtype=values.dtype), (1 - ratio**steps) / (1 - ratio)
    )
    return lr**2 / 2 * (values * spread * series).sum()


def stationary_covariance(hessian: Tensor, covariance: Tensor, *, lr: float) -> Tensor:
    """X = (I−ηH)X(I−ηH) + η²Σ, the covariance of θ after many steps, (D, D), by SciPy.

    Raises:
        ValueError: not 0 < ηλ < 2 for every eigenvalue of H: nothing stationary exists.
    """
    check_matrices(hessian, covariance)
    check_positive("lr", lr)
    require_stationary(hessian, 2 / lr, f"2/lr = {2 / lr:.3g}")
    contraction = (torch.eye(len(hessian), dtype=hessian.dtype) - lr * hessian.cpu()).numpy()
    found = solve_discrete_lyapunov(contraction, (lr**2 * covariance).cpu().numpy())
    return torch.as_tensor(found, dtype=hessian.dtype, device=hessian.device)


def check_matrices(hessian: Tensor, covariance: Tensor) -> None:
    """Refuse an H or a Σ that is no square matrix of finite numbers, or two that do not go together."""
    for name, matrix in (("hessian", hessian), ("covariance", covariance)):
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            found = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InvalidTypeError(f"{name} must be a floating-point tensor (D, D), not {found}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidValueError(f"{name} must be square, (D, D), not of shape {tuple(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise InvalidValueError(f"{name} has entries that are not finite")
    if (hessian.shape, hessian.dtype, hessian.device) != (covariance.shape, covariance.dtype, covariance.device):
        raise InvalidValueError(
            f"hessian is {hessian.dtype} of shape {tuple(hessian.shape)} on {hessian.device}, covariance "
            f"{covariance.dtype} of shape {tuple(covariance.shape)} on {covariance.device}: they must be alike"
        )


def require_stationary(hessian: Tensor, limit: float, named: str) -> None:
    """Refuse an H with an eigenvalue, to its precision, outside 0 .. limit, both left out: nothing is stationary.

    Raises:
        ValueError: the message has the eigenvalues.
    """
    values = torch.linalg.eigvalsh(hessian)
    low, high = float(values[0]), float(values[-1])
    if not (low > len(values) * torch.finfo(values.dtype).eps * high and high < limit):
        raise InvalidValueError(
            f"no stationary law: eigenvalues span {low:.3g} .. {high:.3g}, but "
            f"must lie strictly between 0 and {named}"
        )
