"""The laws, a line each."""

from __future__ import annotations

from noisescape.experiments.experiment import Experiment
from noisescape.experiments.lab.alignment import ALIGNMENT
from noisescape.experiments.lab.budget import BUDGET
from noisescape.experiments.lab.exits import EXITS
from noisescape.experiments.lab.implicit_bias import IMPLICIT_BIAS
from noisescape.experiments.lab.llc import LLC
from noisescape.experiments.lab.noise_law import NOISE_LAW
from noisescape.experiments.lab.stability import STABILITY
from noisescape.experiments.lab.svag import SVAG_LAW

LABS: dict[str, Experiment] = {
    known.name: known for known in (STABILITY, BUDGET, EXITS, SVAG_LAW, NOISE_LAW, ALIGNMENT, IMPLICIT_BIAS, LLC)
}
"""By name, in the order of ``lab all``."""
