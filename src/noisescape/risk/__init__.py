"""The empirical risk of a model or closed form: its derivatives, and the operators built from them."""

from noisescape.risk.empirical_risk import EmpiricalRisk, Metric

__all__ = ["EmpiricalRisk", "Metric"]
