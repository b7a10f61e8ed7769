"""The laboratory for gradient noise: measure it, shape it, and watch it escape sharp minima."""

from noisescape import linops, theory
from noisescape.dynamics import (
    DYNAMICS,
    GD,
    SGD,
    Dynamics,
    GDGradientPenalty,
    GLDConstant,
    GLDDiagonal,
    GLDDynamic,
    GLDFull,
    GLDHessian,
    GLDLeading,
    GLDShuffled,
    GLDTopEigenvector,
    MatchedTrace,
    dynamics_by_name,
)
from noisescape.errors import BatchCouplingError, CorruptFileError, NonFiniteLossError
from noisescape.linops import (
    Eigenpairs,
    Estimate,
    SpectralDensity,
    SymmetricOperator,
    diagonal,
    eigenpairs,
    product_trace,
    spectral_density,
    squared_norm,
    trace,
)
from noisescape.measurement.indicator import Measurement, measure
from noisescape.measurement.memory import forecast_memory
from noisescape.measurement.sharpness import Sharpness, expected_sharpness
from noisescape.risk import EmpiricalRisk
from noisescape.simulation import Trajectory, recorders, simulate
from noisescape.theory import landscapes

__version__ = "0.1.0"

__all__ = [
    "DYNAMICS",
    "GD",
    "SGD",
    "BatchCouplingError",
    "CorruptFileError",
    "Dynamics",
    "Eigenpairs",
    "EmpiricalRisk",
    "Estimate",
    "GDGradientPenalty",
    "GLDConstant",
    "GLDDiagonal",
    "GLDDynamic",
    "GLDFull",
    "GLDHessian",
    "GLDLeading",
    "GLDShuffled",
    "GLDTopEigenvector",
    "MatchedTrace",
    "Measurement",
    "NonFiniteLossError",
    "Sharpness",
    "SpectralDensity",
    "SymmetricOperator",
    "Trajectory",
    "diagonal",
    "dynamics_by_name",
    "eigenpairs",
    "expected_sharpness",
    "forecast_memory",
    "landscapes",
    "linops",
    "measure",
    "product_trace",
    "recorders",
    "simulate",
    "spectral_density",
    "squared_norm",
    "theory",
    "trace",
]
