"""Leading eigenpairs of XᵀX for a wide or tall X: from its smaller Gram matrix, or from a sketch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from noisescape.linops.eigen import largest_eigh
from noisescape.linops.tall import inner_products, orthonormal, squared_length

OVERSAMPLING = 10
"""Columns of a sketch beyond those asked for."""
START_SEED = 0x6E6F697365
"""Of the start of a search for directions; no seed a caller is likely to choose, whose probes would be the same."""
TEMPORARY = 2**25
"""Bytes that the intermediate of one product may take."""


class Rows(Protocol):
    """X, (N, D), held as it is or as factors: per-sample gradients, for one."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""

    @property
    def direct(self) -> Tensor:
        """The columns that are held as they are, (N, D'); all of X where D' = D."""

    def __matmul__(self, block: Tensor) -> Tensor:
        """Xv, (D, K) → (N, K)."""

    def weighted(self, weights: Tensor) -> Tensor:
        """Xᵀw, (N, K) → (D, K)."""

    def gram(self) -> Tensor:
        """XXᵀ, (N, N)."""


def leading_pairs(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs of XᵀX from the smaller of XXᵀ and XᵀX.

    Args:
        rows: X, (N, D), or (R, N, D).
        k: how many; fewer come back where the numerical rank is lower (single X only).

    Returns:
        Values (k,) in decreasing order and vectors as columns (D, k), with a leading R for replicas.
    """
    if rows.ndim == 2:
        return _leading_pairs_in_blocks(rows, k, centred=False)[:2]
    tall = rows.shape[-2] > rows.shape[-1]
    gram = rows.mT @ rows if tall else inner_products(rows, rows.mT)
    k = min(k, gram.shape[-1])
    values, vectors = largest_eigh(gram, k)
    if tall:
        return values.clamp_min(0), vectors
    lifted = rows.mT @ vectors / values.clamp_min(torch.finfo(rows.dtype).tiny).sqrt()[..., None, :]
    return values.clamp_min(0), lifted


def leading_pairs_of(rows: Rows, k: int, *, centred: bool) -> tuple[Tensor, Tensor, float]:
    """As :func:`leading_pairs` of X, less the mean of its rows if centred, without forming it; and the trace."""
    if rows.direct.shape == rows.shape:
        return _leading_pairs_in_blocks(rows.direct, k, centred=centred)
    gram = rows.gram()
    of_mean = gram.mean() * len(gram)  # N‖x̄‖²: subtracting it leaves its rounding error
    if centred:
        gram = gram - gram.mean(0)
        gram = gram - gram.mean(1, keepdim=True)
    values, vectors = largest_eigh(gram, min(k, *rows.shape))
    values, vectors = _resolved(values, vectors, values.amax() + of_mean.clamp_min(0))
    lifted = rows.weighted(vectors - vectors.mean(0) if centred else vectors)
    return values, lifted / values.sqrt(), float(gram.diagonal().double().sum())


def _leading_pairs_in_blocks(rows: Tensor, k: int, *, centred: bool) -> tuple[Tensor, Tensor, float]:
    """As :func:`leading_pairs_of`, of a matrix that is never copied whole to subtract the mean."""
    count, dimension = rows.shape
    tall = count > dimension
    centre = rows.mean(0) if centred else rows.new_zeros(dimension)

    def blocks() -> Iterator[Tensor]:
        if tall:
            for some in rows.split(max(1, TEMPORARY // (dimension * rows.element_size()))):
                yield some - centre
        else:
            width = max(1, TEMPORARY // (count * rows.element_size()))
            for some, its_centre in zip(rows.split(width, dim=1), centre.split(width), strict=True):
                yield some - its_centre

    gram = rows.new_zeros(min(rows.shape), min(rows.shape))
    total = 0.0
    for block in blocks():
        gram += block.mT @ block if tall else inner_products(block, block.mT)
        total += squared_length(block)
    values, vectors = largest_eigh(gram, min(k, len(gram)))
    if tall:
        return values.clamp_min(0), vectors, total
    values, vectors = _resolved(values, vectors, values.amax())
    return values, torch.cat([block.mT @ vectors for block in blocks()]) / values.sqrt(), total


def _resolved(values: Tensor, vectors: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of a Gram matrix of that size, vectors (N, k), that stand above its rounding error."""
    floor = size * 10 * len(vectors) * torch.finfo(values.dtype).eps
    rank = int((~(values <= floor)).sum())  # NaN stays
    return values[:rank], vectors[:, :rank]


def sketches(rows: Rows, k: int) -> bool:
    """Whether X is large enough for a sketch to be cheaper than its Gram matrix."""
    return 4 * (k + OVERSAMPLING) < min(rows.shape)


def sketched_pairs(rows: Rows, k: int, *, centred: bool, sweeps: int = 4) -> tuple[Tensor, Tensor]:
    """As :func:`leading_pairs_of`, approximately: by randomised subspace iteration.

    The part of XᵀX captured is within a per cent of the best rank k where the spectrum decays at all, for
    2(k + 10)·(sweeps + 1) products with X in place of the N products of a Gram matrix. The start is
    fixed: the same X gives the same pairs.

    Source: Halko, Martinsson & Tropp (2011), algorithm 4.4.
    """
    if not sketches(rows, k):
        return leading_pairs_of(rows, k, centred=centred)[:2]

    def centre(columns: Tensor) -> Tensor:
        return columns - columns.mean(0) if centred else columns

    width = k + OVERSAMPLING
    like = rows.direct
    generator = fixed_generator(like.device)
    start = torch.randn(rows.shape[0], width, generator=generator, dtype=like.dtype, device=like.device)
    basis = orthonormal(rows.weighted(centre(start)))
    for _ in range(sweeps - 1):
        basis = orthonormal(rows.weighted(centre(rows @ basis)))
    image = centre(rows @ basis)
    values, vectors = largest_eigh(image.mT @ image, k)
    return values.clamp_min(0), basis @ vectors


def fixed_generator(device: torch.device) -> torch.Generator:
    """The generator every search for directions starts from."""
    return torch.Generator(device).manual_seed(START_SEED)
