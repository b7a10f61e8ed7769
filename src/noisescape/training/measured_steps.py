"""The measured steps that figures are smoothed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisescape.training.noise_scale import smooth

METRICS = ("", "preconditioned/")


class MeasuredSteps:
    """The last so many measured steps: B, K, and (Tr Ĉ, ‖ĝ‖²) by metric and parameter group.

    Args:
        most: steps that are kept.
    """

    def __init__(self, most: int) -> None:
        self._steps: deque[tuple[float, float, NDArray[np.float64]]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def groups(self) -> int:
        """How many parameter groups the last step had."""
        return int(self._steps[-1][2].shape[-1])

    def add(self, samples: float, pieces: float, moments: NDArray[np.float64]) -> None:
        """One more step; moments are (2 metrics, 2, groups), NaN in a metric that there is not."""
        self._steps.append((samples, pieces, moments))

    def clear(self) -> None:
        """Begin anew."""
        self._steps.clear()

    def counts(self) -> dict[str, float]:
        """Mean B and K, and how many steps there are."""
        return {
            "batch_size": float(np.mean([samples for samples, _, _ in self._steps])),
            "pieces": float(np.mean([pieces for _, pieces, _ in self._steps])),
            "measured_steps": float(len(self._steps)),
        }

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """Tr C, ‖ḡ‖² and their ratio with their errors, in each metric; of each named group too, if of several."""
        moments = np.stack([each for _, _, each in self._steps])
        found = _smoothed("", moments.sum(-1))
        if moments.shape[-1] > 1:
            for index in range(moments.shape[-1]):
                found |= _smoothed(f"group/{names[index]}/", moments[..., index])
        return found

    def state_dict(self) -> list[Any]:
        """The steps as plain numbers."""
        return [[samples, pieces, moments.tolist()] for samples, pieces, moments in self._steps]

    def like(self, state: list[Any]) -> MeasuredSteps:
        """As many steps at most, those of a state.

        Raises:
            TypeError, ValueError: it is none.
        """
        found = MeasuredSteps(self._steps.maxlen or 1)
        for samples, pieces, moments in state:
            array = np.array(moments, float)
            if array.ndim != 3 or array.shape[:2] != (2, 2):
                raise ValueError(f"moments of shape {array.shape}")
            found.add(float(samples), float(pieces), array)
        return found


def _smoothed(place: str, moments: NDArray[np.float64]) -> dict[str, float]:
    """Of (steps, 2 metrics, 2)."""
    found: dict[str, float] = {}
    for index, metric in enumerate(METRICS):
        known = moments[:, index]
        known = known[np.isfinite(known).all(1)]
        if not len(known):
            continue
        smoothed = smooth(known[:, 0], known[:, 1])
        found |= {
            f"{place}{metric}trace_covariance": smoothed.trace,
            f"{place}{metric}trace_covariance_stderr": smoothed.trace_stderr,
            f"{place}{metric}squared_gradient_norm": smoothed.squared_norm,
            f"{place}{metric}squared_gradient_norm_stderr": smoothed.squared_norm_stderr,
            f"{place}{metric}scale": smoothed.scale,
            f"{place}{metric}scale_stderr": smoothed.scale_stderr,
            f"{place}{metric}scale_low": smoothed.scale_low,
            f"{place}{metric}scale_high": smoothed.scale_high,
        }
    return found
