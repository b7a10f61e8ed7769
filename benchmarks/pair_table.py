"""Operators whose pairs f_nᵀA_m f_n are all known, as a table: what pairing samples does, by look-ups."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.linops import DenseOperator, DiagonalOperator, SampleColumns, SampleMean


class PairedCurvature(DiagonalOperator):
    """A = (1/N) Σ_m diag(T_·m) for a table T of pairs, (N, N): with f_n = e_n, f_nᵀA_m f_n is T_nm."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table.mean(1))
        self.psd = False  # as a Hessian, which nobody takes for the covariance of the two
        self.table = table

    def over_samples(self) -> SampleMean:
        """Its columns as diagonals."""
        return SampleMean(self.table.shape[1], lambda sample: DiagonalOperator(self.table[:, sample]))


class PairedColumns(DenseOperator):
    """B = (1/N) Σ_n e_n e_nᵀ."""

    def __init__(self, count: int) -> None:
        self.axes = torch.eye(count, dtype=torch.float64)
        super().__init__(self.axes / count, psd=True)

    def columns_of_samples(self) -> SampleColumns:
        """The axes."""
        return SampleColumns(len(self.axes), lambda samples: self.axes[:, samples])
