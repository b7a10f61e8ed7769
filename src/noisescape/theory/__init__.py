"""Closed forms for noisy gradient descent near a minimum, landscapes to compare them on, the account of a run."""

from noisescape.measurement.bounds import decay_exponent, indicator_bounds, projection_coefficient
from noisescape.measurement.loss_budget import LossBudget, drawn_loss_change, loss_budget
from noisescape.theory import basin, landscapes
from noisescape.theory.batch_sharpness import BatchSharpness, batch_sharpness, batch_sharpness_limits
from noisescape.theory.loss_account import LossAccount, loss_account
from noisescape.theory.ornstein_uhlenbeck import (
    escaping_efficiency,
    ou_expected_excess_loss,
    ou_stationary_covariance,
)
from noisescape.theory.quadratic import expected_excess_loss, stationary_covariance
from noisescape.theory.stability import MeanSquareThreshold, mean_square_bound, mean_square_threshold

__all__ = [
    "BatchSharpness",
    "LossAccount",
    "LossBudget",
    "MeanSquareThreshold",
    "basin",
    "batch_sharpness",
    "batch_sharpness_limits",
    "decay_exponent",
    "drawn_loss_change",
    "escaping_efficiency",
    "expected_excess_loss",
    "indicator_bounds",
    "landscapes",
    "loss_account",
    "loss_budget",
    "mean_square_bound",
    "mean_square_threshold",
    "ou_expected_excess_loss",
    "ou_stationary_covariance",
    "projection_coefficient",
    "stationary_covariance",
]
