"""The empirical risk of a model or closed form: its derivatives, and the operators built from them."""

from noisescape.risk.chunking import ample_budget
from noisescape.risk.columns import Columns
from noisescape.risk.contents import fingerprint, layer_sizes, tensor_names
from noisescape.risk.empirical_risk import (
    EmpiricalRisk,
    Metric,
    closed_form_risk,
    in_operator_precision,
)
from noisescape.risk.hessian import DifferenceHessian, gauss_newton_control
from noisescape.risk.rehearsal import rehearse
from noisescape.risk.shuffled_residuals import shuffled_covariance

__all__ = [
    "Columns",
    "DifferenceHessian",
    "EmpiricalRisk",
    "Metric",
    "ample_budget",
    "closed_form_risk",
    "fingerprint",
    "gauss_newton_control",
    "in_operator_precision",
    "layer_sizes",
    "rehearse",
    "shuffled_covariance",
    "tensor_names",
]
