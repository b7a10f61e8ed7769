"""Symmetric operators, and what can be estimated from their products with vectors."""

from noisescape.linops.eigen import Eigenpairs, eigenpairs, largest_eigh, nystrom_pairs
from noisescape.linops.estimate import Estimate, VectorEstimate, mean_of_draws, ratio, square_root
from noisescape.linops.operator import FunctionOperator, SampleColumns, SampleMean, Split, SymmetricOperator
from noisescape.linops.probing import ToleranceWarning
from noisescape.linops.product_trace import product_trace
from noisescape.linops.spectrum import SpectralDensity, spectral_density
from noisescape.linops.structured import (
    DenseOperator,
    DeviationsOperator,
    DiagonalOperator,
    IsotropicOperator,
    LowRankOperator,
)
from noisescape.linops.trace import diagonal, squared_norm, trace, trace_and_squared_norm

__all__ = [
    "DenseOperator",
    "DeviationsOperator",
    "DiagonalOperator",
    "Eigenpairs",
    "Estimate",
    "FunctionOperator",
    "IsotropicOperator",
    "LowRankOperator",
    "SampleColumns",
    "SampleMean",
    "SpectralDensity",
    "Split",
    "SymmetricOperator",
    "ToleranceWarning",
    "VectorEstimate",
    "diagonal",
    "eigenpairs",
    "largest_eigh",
    "mean_of_draws",
    "nystrom_pairs",
    "product_trace",
    "ratio",
    "spectral_density",
    "square_root",
    "squared_norm",
    "trace",
    "trace_and_squared_norm",
]
