"""Closed-form landscapes: quadratics with known noise, and the paper's two-dimensional toy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk import EmpiricalRisk, closed_form_risk
from noisescape.risk.closed_form import SampleLoss

Geometry = Literal["published", "isotropic", "rotated"]
GEOMETRIES: dict[Geometry, tuple[float, float]] = {
    "published": (10.0, 100.0),
    "isotropic": (55.0, 55.0),
    "rotated": (100.0, 10.0),
}
"""Coefficients of u² and v² in the sharp basin, of the same sum: all basins have the same TrH."""

SHARP_MINIMUM = (1.0, 1.0)
FLAT_MINIMUM = (-1.0, -1.0)
_ALONG = 0.5**0.5


def quadratic(hessian: Tensor, gradients: Tensor) -> EmpiricalRisk:
    """ℓ_n(θ) = ½θᵀHθ + b_nᵀθ with the b_n centred: L = ½θᵀHθ, minimum 0, C = cov(b) everywhere.

    Args:
        hessian: H, (D, D), symmetric.
        gradients: b, the samples' gradients at 0, (N, D); their mean is subtracted.

    >>> quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).noise_covariance(
    ...     torch.zeros(2), 1
    ... ).dense()
    tensor([[1., 0.],
            [0., 0.]])
    """

    for name, given in (("hessian", hessian), ("gradients", gradients)):
        if not isinstance(given, Tensor) or not given.is_floating_point():
            found = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise InvalidTypeError(f"{name} must be a floating-point tensor, not {found}")
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not torch.allclose(hessian, hessian.T):
        raise InvalidValueError(f"hessian must be symmetric, (D, D), which one of {tuple(hessian.shape)} is not")
    if gradients.ndim != 2 or gradients.shape[1] != len(hessian) or gradients.dtype != hessian.dtype:
        raise InvalidValueError(
            f"gradients must be (N, {len(hessian)}) of {hessian.dtype}, not {tuple(gradients.shape)} of "
            f"{gradients.dtype}"
        )

    def loss(theta: Tensor, gradient: Tensor) -> Tensor:
        return 0.5 * ((theta @ hessian) * theta).sum(-1) + (theta * gradient).sum(-1)

    return EmpiricalRisk.from_sample_loss(loss, gradients - gradients.mean(0), torch.zeros_like(hessian[0]))


def toy_points(replicas: int, count: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Data of the toy, (R, N, 2): x = R·(√10 z₁, z₂)·10⁻², the sd-√10 axis along u = (1, −1)/√2."""
    z = torch.randn(2, replicas, count, generator=generator, dtype=dtype, device=generator.device) * 1e-2
    along_u, along_v = 10**0.5 * z[0], z[1]
    # coordinates are stored as planes, so that taking one of them is contiguous
    return torch.stack([along_u + along_v, along_v - along_u]).movedim(0, -1) * _ALONG


def toy_2d(
    points: Tensor, geometry: Geometry = "published", *, kind: type[SampleLoss] = SampleLoss
) -> EmpiricalRisk:
    """ℓ(w; x) = min{p·u² + q·v², ‖w − x + (1,1)‖²}: a sharp basin at (1, 1) and a flat one at (−1, −1).

    (u, v) are the components of w − x − (1, 1) along (1, −1)/√2 and (1, 1)/√2. In the published geometry
    (p, q) = (10, 100): the steep direction v is also the one that leads to the flat basin. ``"rotated"``
    turns the basin by 90° against its data, (100, 10); ``"isotropic"`` has (55, 55).

    Args:
        points: x, (R, N, 2), data of their own for R replicas, or (N, 2).
        geometry: of the sharp basin.
        kind: how the loss of a sample is evaluated and differentiated.

    Raises:
        ValueError: an unknown geometry.
    """
    if not isinstance(points, Tensor) or points.ndim not in (2, 3) or points.shape[-1] != 2:
        found = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise InvalidValueError(f"points must be a tensor (N, 2) or (R, N, 2), not {found}")
    if geometry not in GEOMETRIES:
        raise InvalidValueError(f"unknown geometry '{geometry}'; known: {', '.join(GEOMETRIES)}")
    p, q = GEOMETRIES[geometry]

    def loss(w: Tensor, x: Tensor) -> Tensor:
        # with s and t the sum and difference of the offset's coordinates, v² = (s−2)²/2, u² = t²/2 and
        # ‖w − x + (1,1)‖² = ((s+2)² + t²)/2
        w1, w2 = w.unbind(-1)
        x1, x2 = x.unbind(-1)
        sum_x = x1 + x2
        across = ((w1 - w2) - (x1 - x2)).square()
        sharp = p * across + q * ((w1 + w2 - 2) - sum_x).square()
        flat = across + ((w1 + w2 + 2) - sum_x).square()
        return 0.5 * torch.minimum(sharp, flat)

    start = torch.tensor(SHARP_MINIMUM, dtype=points.dtype, device=points.device)
    return closed_form_risk(kind(loss, points, start))
