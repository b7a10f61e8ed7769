"""Leading eigenpairs of the Hessian as the shape of a noise needs them: to a per cent, and followed."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.linops import eigenpairs, largest_eigh, nystrom_pairs
from noisescape.linops.tall import orthonormal, project_out
from noisescape.risk.empirical_risk import EmpiricalRisk
from noisescape.risk.hessian import Hessian
from noisescape.risk.passes import dense_hessian

SMALL = 32
"""Dimension up to which H is formed."""
FOLLOWED = 0.99
"""Share of the curvature along the new directions that the old ones must carry to be called followed."""
EXPLORATION = 0.03
"""Size of the random part of the start, relative to the previous directions."""
FOLLOWING_STEPS = 6
"""After so many the directions have changed too much: they are found afresh. All three: decision 10."""


def leading_hessian_pairs(risk: EmpiricalRisk, theta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k algebraically largest eigenpairs of H: values (k,) decreasing, vectors (D, k); or with a leading R.

    Dense for D ≤ 32, where replicas are solved as one batch; else Lanczos for each θ in turn, to the 1 %
    accuracy that the shape of a noise needs.
    """
    if risk.dimension <= SMALL:
        return largest_eigh(dense_hessian(risk, theta), k)
    if theta.ndim == 2:
        found = [leading_hessian_pairs(risk, row, k) for row in theta]
        return torch.stack([pair[0] for pair in found]), torch.stack([pair[1] for pair in found])
    pairs = eigenpairs(Hessian(risk, theta), k, tol=1e-2, subspace=max(2 * k + 1, 12))
    return pairs.values, pairs.vectors


def followed_hessian_pairs(
    risk: EmpiricalRisk, theta: Tensor, k: int, previous: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As :func:`leading_hessian_pairs`, from the directions at a point nearby, by block Krylov steps.

    With Y = HU for an orthonormal basis U, at first of the previous directions, H ≈ Y(UᵀY)⁺Yᵀ (Nyström), whose
    leading pairs are better than those of UᵀHU at no further product. What of Y lies outside U is added to it until
    U carries all but 1 % of the curvature that the approximation's k pairs do. A little randomness at the start
    lets in what was not among the previous directions.

    Args:
        risk: L.
        theta: (D,), or (R, D), where nothing is followed.
        k: pairs.
        previous: (D, k), the span of the previous directions; None to start afresh.
        generator: of the randomness.
    """
    if previous is None or theta.ndim == 2 or risk.dimension <= SMALL:
        return leading_hessian_pairs(risk, theta, k)
    hessian = Hessian(risk, theta)
    noise = torch.randn(previous.shape, generator=generator, dtype=theta.dtype, device=theta.device)
    start = orthonormal(previous) + EXPLORATION * noise / len(theta) ** 0.5
    added = orthonormal(start)
    basis = images = added[:, :0]
    for _ in range(FOLLOWING_STEPS):
        image = hessian @ added
        basis, images = torch.cat([basis, added], dim=1), torch.cat([images, image], dim=1)
        values, vectors, carried = nystrom_pairs(basis, images, k)
        if float(carried) >= FOLLOWED * float(values.sum()) > 0:
            return values, vectors
        if not bool(torch.isfinite(values).all()):
            break
        outside = project_out(basis, project_out(basis, image))
        added = orthonormal(outside)
    return leading_hessian_pairs(risk, theta, k)
