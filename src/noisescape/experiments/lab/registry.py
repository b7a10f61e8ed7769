"""The laws, a line each."""

from __future__ import annotations

from noisescape.experiments.experiment import Experiment
from noisescape.experiments.lab.stability import STABILITY

LABS: dict[str, Experiment] = {known.name: known for known in (STABILITY,)}
"""By name, in the order of ``lab all``."""
