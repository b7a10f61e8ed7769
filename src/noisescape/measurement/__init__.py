"""Measurements at one θ: the indicator Tr(HΣ) with its bounds, expected sharpness, a memory forecast."""

from noisescape.measurement.indicator import Measurement, measure
from noisescape.measurement.memory import forecast_memory
from noisescape.measurement.sharpness import Sharpness, expected_sharpness

__all__ = ["Measurement", "Sharpness", "expected_sharpness", "forecast_memory", "measure"]
