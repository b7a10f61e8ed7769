"""Lanczos' recurrence: what products with one vector tell of a spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.linops.operator import SymmetricOperator
from noisescape.linops.tall import inner_products, lengths


def gauss_quadratures(operator: SymmetricOperator, starts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Lanczos on every column at once, with full re-orthogonalisation.

    Args:
        operator: A.
        starts: columns of length 1, (D, probes).
        steps: at most D.

    Returns:
        Nodes, Ritz values in increasing order, and weights of the Gauss quadrature of the density seen from each
        column, (probes, steps).
    """
    size, probes = starts.shape
    alphas = torch.zeros(probes, steps, dtype=starts.dtype, device=starts.device)
    betas = torch.zeros(probes, max(steps - 1, 0), dtype=starts.dtype, device=starts.device)
    # a probe's vectors lie together, so that re-orthogonalisation copies nothing
    basis = starts.new_empty(probes, steps, size)
    basis[:, 0] = starts.T
    for step in range(steps):
        latest = basis[:, step]
        product = (operator @ latest.T).T.clone(memory_format=torch.contiguous_format)
        alphas[:, step] = torch.linalg.vecdot(latest, product)
        if step == steps - 1:
            break
        for seen, row in zip(basis[:, : step + 1], product, strict=True):
            for _ in range(2):  # once is not enough in floating point
                row.addmv_(seen.T, inner_products(seen, row[:, None])[:, 0], alpha=-1)
        norm = lengths(product)
        # a probe whose Krylov space is exhausted continues with a zero vector: its further weights vanish
        scale = alphas[:, : step + 1].abs().amax(1)
        alive = norm > 10 * torch.finfo(starts.dtype).eps * scale
        betas[:, step] = torch.where(alive, norm, 0.0)
        divisor = torch.where(alive, norm, torch.inf)  # NaN stays NaN, and what is not alive becomes 0
        torch.div(product, divisor[:, None], out=basis[:, step + 1])
    tridiagonal = torch.diag_embed(alphas) + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[:, 0, :].square()
