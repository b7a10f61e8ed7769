"""Judge of the runs on the sharpness of gradient descent."""

from __future__ import annotations

from noisescape.experiments.claims.claim import Result
from noisescape.experiments.claims.evidence import Evidence
from noisescape.experiments.claims.rules import EDGE, lies_within


def settles_at_edge(evidence: Evidence) -> list[Result]:
    """Whether λ₁·η/2 is at the edge at the last step, for every rate that is expected to get there."""
    config, curves = evidence.config, evidence.curves_by("rate", "metric")
    return [
        lies_within(
            [rate * value / 2 for value in curves.at(int(config["steps"]), rate, "largest_eigenvalue")],
            *EDGE,
            case=f"η = {rate:g}",
        )
        for rate in config["rates"]
        if rate >= config["edge_from"]
    ]
