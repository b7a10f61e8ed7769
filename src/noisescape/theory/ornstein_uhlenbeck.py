"""The small-step limit near a minimum: dθ = −Hθ dt + √η Σ^{1/2} dW, with t = η × steps."""

from __future__ import annotations

import math

import torch
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor

from noisescape.scalars import check_positive, check_real
from noisescape.theory.quadratic import check_matrices, require_stationary


def ou_expected_excess_loss(hessian: Tensor, covariance: Tensor, *, lr: float, time: float) -> Tensor:
    """E L(θ_t) − L(θ₀) = (η/4) Tr((I − e^{−2Ht})Σ), also where H and Σ do not commute.

    Args:
        hessian: H, (D, D).
        covariance: Σ of the *gradient* noise, (D, D).
        lr: η.
        time: t = η × steps.

    Returns:
        A scalar, (), in units of the loss.
    """
    check_matrices(hessian, covariance)
    check_positive("lr", lr)
    check_real("time", time, 0)
    values, vectors = torch.linalg.eigh(hessian)
    spread = torch.einsum("ij,ik,kj->j", vectors, covariance, vectors)
    return lr / 4 * (-torch.expm1(-2 * values * time) * spread).sum()


def escaping_efficiency(trace_h_sigma: float | Tensor, *, lr: float, time: float) -> float | Tensor:
    """(ηt/2)·Tr(HΣ), the short-time limit of :func:`ou_expected_excess_loss`: why Tr(HΣ) is the indicator.

    It stops holding once t is comparable to 1/(2λ₁); as t → ∞ a full-rank H gives (η/4)·TrΣ whatever the
    shape of Σ.
    """
    check_positive("lr", lr)
    check_real("time", time, 0)
    return lr * time / 2 * trace_h_sigma


def ou_stationary_covariance(hessian: Tensor, covariance: Tensor, *, lr: float) -> Tensor:
    """X with HX + XH = ηΣ, (D, D), by SciPy's Lyapunov solver.

    Raises:
        ValueError: H is not positive definite: nothing stationary exists.
    """
    check_matrices(hessian, covariance)
    check_positive("lr", lr)
    require_stationary(hessian, math.inf, "∞")
    found = solve_continuous_lyapunov(hessian.cpu().numpy(), (lr * covariance).cpu().numpy())
    return torch.as_tensor(found, dtype=hessian.dtype, device=hessian.device)
