"""Measurements at one θ: the indicator Tr(HΣ) with its bounds, or a first look at it, the budget of a step's loss
change, how near C, the Fisher information and H are, expected sharpness, a memory forecast."""

from noisescape.measurement.comparison import Comparison, compare_noise_and_curvature, compare_operators
from noisescape.measurement.fast import FastMeasurement, measure_fast
from noisescape.measurement.indicator import Measurement, measure
from noisescape.measurement.layers import LayerTraces, layer_traces
from noisescape.measurement.loss_budget import LossBudget, drawn_loss_change, loss_budget
from noisescape.measurement.memory import forecast_memory
from noisescape.measurement.relative_alignment import RelativeAlignment, relative_alignment
from noisescape.measurement.sharpness import Sharpness, expected_sharpness, layer_relative_sharpness

__all__ = [
    "Comparison",
    "FastMeasurement",
    "LayerTraces",
    "LossBudget",
    "Measurement",
    "RelativeAlignment",
    "Sharpness",
    "compare_noise_and_curvature",
    "compare_operators",
    "drawn_loss_change",
    "expected_sharpness",
    "forecast_memory",
    "layer_relative_sharpness",
    "layer_traces",
    "loss_budget",
    "measure",
    "measure_fast",
    "relative_alignment",
]
