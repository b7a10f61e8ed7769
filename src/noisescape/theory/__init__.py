"""Closed forms for noisy gradient descent near a minimum, the laws that came after, landscapes to try them on.

A law has a file: its formula, what it assumes, and where it is from. ``noisescape lab`` decides each by experiment.
"""

from noisescape.measurement.bounds import decay_exponent, indicator_bounds, projection_coefficient
from noisescape.measurement.loss_budget import LossBudget, drawn_loss_change, loss_budget
from noisescape.theory import basin, landscapes
from noisescape.theory.alignment import PowerLaw, alignment_factor, alignment_law, power_law
from noisescape.theory.batch_sharpness import BatchSharpness, batch_sharpness, batch_sharpness_limits
from noisescape.theory.exit_laws import (
    DiscreteExitTime,
    ExitLaw,
    ExitLawFits,
    KramersTime,
    discrete_exit_time,
    fit_exit_law,
    kramers_time,
)
from noisescape.theory.exits import ExitRate, ExitTimes, Survival, exit_rate, exit_times, survival
from noisescape.theory.implicit_bias import QuadraticRegression, label_noise_penalty, quadratic_regression, recovery
from noisescape.theory.learning_coefficient import (
    LearningCoefficient,
    expected_on_quadratic,
    local_learning_coefficient,
)
from noisescape.theory.loss_account import LossAccount, loss_account
from noisescape.theory.noise_law import AgainstNull, TailTest, epoch_variance, stable_index, tail_test
from noisescape.theory.ornstein_uhlenbeck import (
    escaping_efficiency,
    ou_expected_excess_loss,
    ou_stationary_covariance,
)
from noisescape.theory.quadratic import expected_excess_loss, stationary_covariance
from noisescape.theory.sde_gap import SDEGap, sde_gap
from noisescape.theory.stability import MeanSquareThreshold, mean_square_bound, mean_square_threshold

__all__ = [
    "AgainstNull",
    "BatchSharpness",
    "DiscreteExitTime",
    "ExitLaw",
    "ExitLawFits",
    "ExitRate",
    "ExitTimes",
    "KramersTime",
    "LearningCoefficient",
    "LossAccount",
    "LossBudget",
    "MeanSquareThreshold",
    "PowerLaw",
    "QuadraticRegression",
    "SDEGap",
    "Survival",
    "TailTest",
    "alignment_factor",
    "alignment_law",
    "basin",
    "batch_sharpness",
    "batch_sharpness_limits",
    "decay_exponent",
    "discrete_exit_time",
    "drawn_loss_change",
    "epoch_variance",
    "escaping_efficiency",
    "exit_rate",
    "exit_times",
    "expected_excess_loss",
    "expected_on_quadratic",
    "fit_exit_law",
    "indicator_bounds",
    "kramers_time",
    "label_noise_penalty",
    "landscapes",
    "local_learning_coefficient",
    "loss_account",
    "loss_budget",
    "mean_square_bound",
    "mean_square_threshold",
    "ou_expected_excess_loss",
    "ou_stationary_covariance",
    "power_law",
    "projection_coefficient",
    "quadratic_regression",
    "recovery",
    "sde_gap",
    "stable_index",
    "stationary_covariance",
    "survival",
    "tail_test",
]
