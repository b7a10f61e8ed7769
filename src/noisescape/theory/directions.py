"""Directions in which single samples curve much: where to look for the deviation that SGD makes grow first."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisescape.linops import eigenpairs
from noisescape.linops.tall import left_singular, lengths, project_out
from noisescape.risk import EmpiricalRisk
from noisescape.risk.sample_curvature import SampleCurvature
from noisescape.theory.second_moments import FLAT, FactoredForms, Forms, HeldForms

Curvature = Literal["gauss-newton", "hessian"]
CARRIED = 4
"""Directions of the worst deviation that each round looks beyond."""
POWERS = 4
"""Products by which such a direction is made one along which samples curve much."""
PROBES = 16
"""Random vectors that samples' strengths are estimated with."""


def first_directions(
    risk: EmpiricalRisk, theta: Tensor, samples: SampleCurvature, curvature: Curvature, seed: int
) -> Tensor:
    """The leading directions of H, and those in which the most curved samples curve."""
    operator = risk.hessian(theta) if curvature == "hessian" else risk.gauss_newton(theta)
    leading = eigenpairs(operator, min(CARRIED, risk.dimension), seed=seed)
    generator = torch.Generator(theta.device).manual_seed(seed)
    shape = (risk.dimension, PROBES)
    probes = torch.randn(shape, generator=generator, dtype=theta.dtype, device=theta.device)
    strength = torch.stack([samples.forms(one[:, None], one[:, None]).flatten() for one in probes.T]).mean(0).abs()
    probe = probes[:, :1]
    picked = strength.topk(min(CARRIED, len(strength))).indices
    weights = torch.zeros(len(strength), 1, len(picked), dtype=theta.dtype, device=theta.device)
    weights[picked, 0, torch.arange(len(picked), device=theta.device)] = 1
    own = samples.combined(probe, weights)
    found = _beyond(leading.vectors, own)
    return leading.vectors if found is None else torch.cat([leading.vectors, found], dim=1)


def seen(samples: SampleCurvature, basis: Tensor) -> Forms:
    """The samples' curvatures along the basis: by their factors, where these have fewer rows than directions."""
    roots = samples.roots(basis)
    return (
        HeldForms(samples.forms(basis, basis).double().cpu())
        if roots is None
        else FactoredForms(roots.double().cpu())
    )


def seen_also(samples: SampleCurvature, known: Forms, basis: Tensor, new: Tensor) -> Forms:
    """Those along the basis and some directions more."""
    if isinstance(known, FactoredForms):
        roots = samples.roots(new)
        assert roots is not None
        return FactoredForms(torch.cat([known.roots, roots.double().cpu()], dim=2))
    across = samples.forms(torch.cat([basis, new], dim=1), new).double().cpu()
    held = known.dense()
    size = held.shape[1]
    return HeldForms(torch.cat([torch.cat([held, across[:, :size].mT], dim=1), across], dim=2))


def directions_beyond(samples: SampleCurvature, basis: Tensor, projected: Forms, moment: Tensor) -> Tensor | None:
    """What D M and H M have outside the basis, for M = WXWᵀ; None if nothing."""
    values, vectors = torch.linalg.eigh(moment)
    kept = [place for place in range(-1, -min(CARRIED, len(values)) - 1, -1) if values[place] > FLAT * values[-1]]
    root = vectors[:, kept] * values[kept].sqrt()
    root = root / torch.linalg.matrix_norm(root, 2)  # its length does not matter
    weights = projected.along(root).dense()
    identity = torch.eye(len(kept), dtype=weights.dtype).expand_as(weights)
    both = torch.cat([weights, identity], dim=2).to(basis)
    return _beyond(basis, samples.combined(basis @ root.to(basis), both))


def directions_elsewhere(
    samples: SampleCurvature, basis: Tensor, scale: float, generator: torch.Generator
) -> Tensor | None:
    """Some directions outside of the basis along which single samples curve much; None if there is no outside.

    From a random v, v ← (1/N) Σ_n H_nv·(vᵀH_nv) without its part in the basis: each product favours the samples
    that curve most along it.
    """
    shape = (len(basis), CARRIED)
    found = torch.randn(shape, generator=generator, dtype=basis.dtype, device=basis.device)
    for _ in range(POWERS):
        outside = _beyond(basis, found)
        if outside is None:
            return None
        columns = [samples.combined(one[:, None], samples.forms(one[:, None], one[:, None])) for one in outside.T]
        found = torch.cat(columns, dim=1)
    outside = _beyond(basis, found)
    if outside is None:
        return None
    curvatures = torch.cat([samples.forms(one[:, None], one[:, None]).mean(0) for one in outside.T])[:, 0]
    curved = outside[:, curvatures.to(outside.device) > FLAT * scale]
    return curved if curved.shape[1] else None


def _beyond(basis: Tensor, block: Tensor) -> Tensor | None:
    """An orthonormal basis of what a block has outside of the span of another; None if that is rounding."""
    sizes = lengths(block, dim=0)
    block = block[:, sizes > 0] / sizes[sizes > 0]
    for _ in range(2):  # once more: what rounding left
        block = project_out(basis, block)
    vectors, sizes = left_singular(block)
    kept = vectors[:, sizes > 1e3 * torch.finfo(block.dtype).eps]
    return kept if kept.shape[1] else None
