"""The escaping-efficiency identity along a run: what the loss was expected to change by, and what it did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.simulation.records import Record, Trajectory


@dataclass(frozen=True)
class LossAccount:
    """Sums over the steps of a run of the three terms of the loss budget, beside the loss really seen.

    All have the shape (T,), or (T, R) with replicas: at ``steps[i]`` the sum over the steps from ``steps[0]`` up to
    there, in units of the loss. NaN from where a replica diverged.

    Attributes:
        steps: where the account is drawn up, (T,).
        descent: Σ −η‖ḡ‖².
        curvature: Σ (η²/2) ḡᵀHḡ.
        noise: Σ (η²/2) Tr(HΣ_B).
        noise_stderr: of the estimates in ``noise``, added up as if all erred alike: probes may be the same ones.
        actual: L at the step less L at the first.
    """

    steps: Tensor
    descent: Tensor
    curvature: Tensor
    noise: Tensor
    noise_stderr: Tensor
    actual: Tensor

    @property
    def predicted(self) -> Tensor:
        """The sum of the three terms."""
        return self.descent + self.curvature + self.noise

    @property
    def remainder(self) -> Tensor:
        """actual − predicted.

        It holds the terms from η³ on, and what was interpolated between measured steps; and it holds chance: the
        prediction is that of a step's expectation, the loss seen is that of the batches drawn. The latter has mean
        0 over runs, so a remainder is judged over replicas or seeds.
        """
        return self.actual - self.predicted


def loss_account(trajectory: Trajectory, *, budget: str = "budget", loss: str = "loss") -> LossAccount:
    """Add up, along a trajectory, what :func:`noisescape.simulation.recorders.budget` recorded.

    Between two measured steps ‖ḡ‖², ḡᵀHḡ and Tr(HΣ) are interpolated linearly; nothing is where every step was
    measured. η of every step is that of the trajectory, a schedule too.

    Args:
        trajectory: of SGD with the batch size that the recorder was told, from the first measured step on.
        budget: what the recorder is called there.
        loss: what :func:`~noisescape.simulation.recorders.loss` is called there.

    Raises:
        ValueError: one of them was not recorded, the budget at fewer than two steps, or the loss not at all steps
            at which the budget was.
    """
    parts = ("squared_gradient", "gradient_curvature", "trace_h_sigma", "trace_h_sigma_stderr")
    measured = [_record(trajectory, f"{budget}/{part}") for part in parts]
    steps = measured[0].steps
    if len(steps) < 2:
        raise InvalidValueError(
            f"'{budget}' was recorded at step {steps.tolist()} alone; an account takes two steps or more"
        )
    losses = _record(trajectory, loss)
    known = dict(zip(losses.steps.tolist(), losses.values, strict=True))
    if missing := [step for step in steps.tolist() if step not in known]:
        raise InvalidValueError(
            f"'{loss}' was not recorded at step {missing[0]}, where '{budget}' was; record both at the same steps"
        )
    seen = torch.stack([known[step] for step in steps.tolist()])
    first, last = int(steps[0]), int(steps[-1])
    rates = torch.tensor(
        [trajectory.lr(step) if callable(trajectory.lr) else trajectory.lr for step in range(first, last)],
        dtype=torch.float64,
    )
    squared_gradient, gradient_curvature, trace, stderr = (_at_every_step(record) for record in measured)

    def summed(factors: Tensor, values: Tensor) -> Tensor:
        """Σ over the steps before each measured one."""
        terms = factors.reshape(-1, *[1] * (values.ndim - 1)) * values
        return torch.cat([torch.zeros_like(terms[:1]), terms.cumsum(0)])[steps - first]

    half = rates.square() / 2
    return LossAccount(
        steps=steps,
        descent=summed(-rates, squared_gradient),
        curvature=summed(half, gradient_curvature),
        noise=summed(half, trace),
        noise_stderr=summed(half, stderr),
        actual=seen - seen[0],
    )


def _record(trajectory: Trajectory, name: str) -> Record:
    if name not in trajectory.records:
        raise InvalidValueError(
            f"'{name}' was not recorded; run simulate with record={{'loss': recorders.loss, "
            "'budget': recorders.budget(batch_size)}"
        )
    return trajectory.records[name]


def _at_every_step(record: Record) -> Tensor:
    """Values at every step from the first measured one to before the last, linear in between."""
    steps = record.steps
    every = torch.arange(int(steps[0]), int(steps[-1]))
    before = torch.searchsorted(steps, every, right=True) - 1
    share = (every - steps[before]) / (steps[before + 1] - steps[before]).double()
    share = share.reshape(-1, *[1] * (record.values.ndim - 1))
    return (1 - share) * record.values[before] + share * record.values[before + 1]
