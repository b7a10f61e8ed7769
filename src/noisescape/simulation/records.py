"""What is written down along a trajectory: which recorder is due when, and what all of them saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisescape.dynamics import Dynamics
from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk import EmpiricalRisk
from noisescape.simulation.recorders import Recorder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPLICAS_SHOWN = 50
"""Lines of a plot."""


@dataclass(frozen=True)
class Record:
    """What one recorder saw: values[i] at steps[i], each a scalar or one value a replica.

    Attributes:
        steps: (T,).
        values: (T,), or (T, R) with replicas; NaN for replicas that had diverged.
    """

    steps: Tensor
    values: Tensor


@dataclass(frozen=True)
class Trajectory:
    """The outcome of :func:`simulate`.

    Attributes:
        dynamics: what was run.
        lr: η, or the schedule.
        steps: asked for.
        seed: of the noise.
        records: by recorder name.
        theta: the final parameters, (D,) or (R, D); NaN rows for diverged replicas.
        diverged_at: step after which a replica left every bound, (R,) or a scalar; −1 if it never did.
        taken: steps really taken: fewer than asked for if all diverged or ``until`` ended the run.
    """

    dynamics: Dynamics
    lr: float | Callable[[int], float]
    steps: int
    seed: int
    records: Mapping[str, Record]
    theta: Tensor
    diverged_at: Tensor
    taken: int

    @property
    def diverged(self) -> Tensor:
        """Whether each replica diverged, bool, (R,) or a scalar."""
        return self.diverged_at >= 0

    def plot(self) -> Figure:
        """Every record against the step; of replicas, thin lines, and their median."""
        from noisescape.pictures import Picture  # matplotlib is slow to import

        count = max(1, len(self.records))
        figure = Picture(4.2 * min(count, 3), 3.2 * math.ceil(count / 3))
        panels = figure.subplots(math.ceil(count / 3), min(count, 3), squeeze=False).ravel()
        for axis, (name, record) in zip(panels, self.records.items(), strict=False):
            if record.values.ndim == 2:
                axis.plot(
                    record.steps, record.values[:, :REPLICAS_SHOWN], color="#762a83", alpha=0.2, linewidth=0.6
                )
                axis.plot(record.steps, record.values.nanmedian(1).values, color="#762a83")
            else:
                axis.plot(record.steps, record.values, color="#762a83")
            axis.set(xlabel="step", title=name)
        for axis in panels[len(self.records) :]:
            axis.set_visible(False)
        figure.suptitle(f"{self.dynamics.name}, {self.taken} steps", fontsize=10)
        return figure

    def rows(self, **labels: Any) -> Iterable[dict[str, Any]]:
        """The records as tidy rows: dynamics, replica, step, metric, value, and the labels given."""
        for metric, record in self.records.items():
            values = record.values if record.values.ndim == 2 else record.values[:, None]
            for step, per_replica in zip(record.steps.tolist(), values.tolist(), strict=True):
                for replica, value in enumerate(per_replica):
                    yield {
                        **labels,
                        "dynamics": self.dynamics.name,
                        "replica": replica,
                        "step": step,
                        "metric": metric,
                        "value": value,
                    }


class Book:
    """Collects what the recorders return.

    Args:
        recorders: by name.
        every: how often those without steps of their own are called.
        steps: of the run, the last of which all of those see.

    Raises:
        ValueError: a recorder that no step of the run is due for, or ``every`` < 1.
    """

    def __init__(self, recorders: Mapping[str, Recorder], every: int, steps: int) -> None:
        if every < 1:
            raise InvalidValueError(f"every must be at least 1, not {every}")
        if not isinstance(recorders, Mapping):
            raise InvalidTypeError(
                f"record must be recorders by name, {{'loss': recorders.loss}}, not {type(recorders).__name__}"
            )
        for name, recorder in recorders.items():
            if not callable(recorder):
                raise InvalidTypeError(
                    f"recorder '{name}' must be a function (risk, θ), not {type(recorder).__name__}"
                )
            due = _own_steps(recorder)
            if due is not None and not any(0 <= step <= steps for step in due):
                raise InvalidValueError(
                    f"recorder '{name}' is due at none of the run's steps 0..{steps}: {sorted(due)[:5]}"
                )
        self.recorders = recorders
        self._every = every
        self._steps = steps
        self._seen: dict[str, tuple[list[int], list[Tensor]]] = {}

    def plan(self) -> str:
        """Which recorders are called when."""
        plans = [
            name if (due := _own_steps(recorder)) is None else f"{name} at {sorted(due)}"
            for name, recorder in self.recorders.items()
        ]
        return f"{', '.join(plans) or 'none'}, every {self._every}"

    def due(self, step: int) -> bool:
        """Whether a recorder is called at this step."""
        return any(self._due(recorder, step) for recorder in self.recorders.values())

    def write(self, step: int, risk: EmpiricalRisk, theta: Tensor, diverged_at: Tensor) -> bool:
        """What those due at this step see; whether one was due."""
        seen = False
        for name, recorder in self.recorders.items():
            if self._due(recorder, step):
                seen = True
                outcome = recorder(risk, theta)
                parts = outcome if isinstance(outcome, Mapping) else {"": outcome}
                for part, value in parts.items():
                    self.note("/".join(filter(None, (name, part))), step, value, diverged_at)
        return seen

    def note(self, name: str, step: int, value: Any, diverged_at: Tensor) -> None:
        """One value, or one a replica; NaN for those that have diverged."""
        try:
            full = torch.as_tensor(value, dtype=torch.float64).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise InvalidTypeError(
                f"recorder '{name}' returned {type(value).__name__}; it returns a number, one a replica (R,), or a "
                "mapping of names to such"
            ) from None
        if full.ndim and full.shape != diverged_at.shape:
            raise InvalidValueError(
                f"recorder '{name}' returned shape {tuple(full.shape)}; it returns a number, or one a replica, "
                f"{tuple(diverged_at.shape)}"
            )
        full = full.expand(diverged_at.shape) if full.ndim == 0 else full
        full = torch.where(diverged_at.cpu() >= 0, torch.nan, full)
        steps, values = self._seen.setdefault(name, ([], []))
        steps.append(step)
        values.append(full)

    def close(self, step: int) -> None:
        """Everything diverged: a last NaN shows where the curves end."""
        for steps, values in self._seen.values():
            steps.append(step)
            values.append(torch.full_like(values[-1], torch.nan))

    def records(self) -> dict[str, Record]:
        """All that was seen so far, by name."""
        return {
            name: Record(torch.tensor(steps), torch.stack(values)) for name, (steps, values) in self._seen.items()
        }

    def _due(self, recorder: Recorder, step: int) -> bool:
        chosen = _own_steps(recorder)
        return step in chosen if chosen is not None else step % self._every == 0 or step == self._steps

    def restore(self, records: Mapping[str, Record]) -> None:
        """Go on where another book ended."""
        self._seen = {
            name: (record.steps.tolist(), list(record.values.unbind())) for name, record in records.items()
        }


def _own_steps(recorder: Recorder) -> Collection[int] | None:
    """The steps that a recorder brings, if any."""
    return getattr(recorder, "steps", None)
