"""The empirical risk of a model or closed form: its derivatives, and the operators built from them."""

from noisescape.risk.empirical_risk import (
    DEFAULT_MEMORY_BUDGET,
    EmpiricalRisk,
    Metric,
    closed_form_risk,
    fingerprint,
)
from noisescape.risk.hessian import DifferenceHessian

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "DifferenceHessian",
    "EmpiricalRisk",
    "Metric",
    "closed_form_risk",
    "fingerprint",
]
