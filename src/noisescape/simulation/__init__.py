"""Running a dynamics: the loop, what is recorded along it, and checkpoints."""

from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.simulation.records import Record, Trajectory

__all__ = ["Record", "Trajectory", "recorders", "simulate"]
