"""Symmetric matrices of known spectra, and operators with every kind of structure over them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cases import F64, normal, symmetric
from noisescape.linops import DenseOperator, DiagonalOperator, IsotropicOperator, LowRankOperator, SymmetricOperator

DISTINCT = torch.cat([torch.tensor([9.0, 7, 5.5, 4, -8, -6, -3]), torch.linspace(-1, 1, 153)]).to(F64)
REPEATED = torch.cat([torch.tensor([5.0, 5, 5, 2, -4, -4]), torch.linspace(-1, 1, 154)]).to(F64)
SPECTRA = {
    "distinct": DISTINCT,
    "repeated": REPEATED,
    "rank five": torch.cat([torch.tensor([9.0, 7, 5.5, 4, 3]), torch.zeros(155)]).to(F64),
    "all equal": torch.full((160,), 2.0, dtype=F64),
    "zero": torch.zeros(160, dtype=F64),
    "small and dense": torch.linspace(-2, 3, 20, dtype=F64),
}
SIZE = 70
SPREAD = torch.cat([torch.tensor([20.0, 8, 3]), torch.linspace(0.1, 1, SIZE - 3)]).to(F64)
INDEFINITE = torch.cat([torch.tensor([20.0, 8, -5]), torch.linspace(-1, 2, SIZE - 3)]).to(F64)
PSD = symmetric(SIZE, SPREAD, seed=11)
MIXED = symmetric(SIZE, INDEFINITE, seed=12)
OTHER = symmetric(SIZE, INDEFINITE.flip(0), seed=13)
SQUARE: dict[str, Callable[[], SymmetricOperator]] = {
    "indefinite": lambda: DenseOperator(MIXED, name="A"),
    "other indefinite": lambda: DenseOperator(OTHER, name="B"),
    "PSD": lambda: DenseOperator(PSD, psd=True),
    "PSD of low rank": lambda: LowRankOperator(normal(SIZE, 4, seed=14)),
    "PSD of higher rank": lambda: LowRankOperator(normal(SIZE, 40, seed=15)),
    "diagonal": lambda: DiagonalOperator(SPREAD),
    "isotropic": lambda: IsotropicOperator(torch.tensor(0.7, dtype=F64), SIZE),
    "sum": lambda: DenseOperator(PSD, psd=True) + LowRankOperator(normal(SIZE, 4, seed=14)),
    "scaled": lambda: 0.3 * LowRankOperator(normal(SIZE, 40, seed=15)),
}
FLAT = symmetric(SIZE, torch.linspace(0.2, 3, SIZE, dtype=F64), seed=16)
