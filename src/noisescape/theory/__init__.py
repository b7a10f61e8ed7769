"""Closed forms for noisy gradient descent near a minimum, and landscapes to compare them on."""

from noisescape.measurement.bounds import decay_exponent, indicator_bounds, projection_coefficient
from noisescape.theory import landscapes
from noisescape.theory.ornstein_uhlenbeck import (
    escaping_efficiency,
    ou_expected_excess_loss,
    ou_stationary_covariance,
)
from noisescape.theory.quadratic import expected_excess_loss, stationary_covariance

__all__ = [
    "decay_exponent",
    "escaping_efficiency",
    "expected_excess_loss",
    "indicator_bounds",
    "landscapes",
    "ou_expected_excess_loss",
    "ou_stationary_covariance",
    "projection_coefficient",
    "stationary_covariance",
]
