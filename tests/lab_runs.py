"""Every law of the theory lab at constants so small that a run takes a second or two."""

from __future__ import annotations

from typing import Any

from noisescape.experiments.lab.registry import LABS

_SMALL: dict[str, Any] = {"clean": 60, "corrupted": 10, "gd_steps": 60}
TINY: dict[str, Any] = {
    "stability": {**_SMALL, "batch_sizes": (5,), "multiples": (0.5, 1.0, 2.0), "runs": 2, "steps": 6},
    "budget": {"clean": 30, "corrupted": 5, "widths": (8,), "steps": 16, "measure_every": 2, "draws": 5},
    "exits": {
        **_SMALL, "heights": (0.5, 0.8, 1.1), "replicas": 20, "well_steps": 300, "levels": (0.2, 0.4, 0.6),
        "runs": 3, "steps": 30,
    },
    "svag": {**_SMALL, "below": (0.3,), "ells": (1, 2), "runs": 2, "steps": 6},
    "noise-law": {
        **_SMALL, "batch_sizes": (5,), "draws": 256, "coordinates": 300, "nulls": 19, "epoch_batch": 20,
        "epochs": 1, "runs": 3, "directions": 3,
    },
    "alignment": {**_SMALL, "per_layer": 20, "steps": 20, "rtol": 0.2},
    "implicit-bias": {"dimension": 8, "sparsity": 1, "samples": 4, "steps": 50, "rhos": (0.3,), "runs": 2},
    "llc": {**_SMALL, "steps": 400, "chains": 2, "network_steps": 200, "sgd_steps": 30},
}  # fmt: skip


def tiny(name: str, **changes: Any) -> Any:
    return LABS[name].configure("quick", **{"seeds": 2, **TINY[name], **changes})
