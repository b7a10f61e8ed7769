"""The escaping-efficiency identity along a run: what the loss was expected to change by, and what it did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
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
        prediction is that of a step's expectation, the loss seen is that of the batches drawn. Chance has mean 0
        over runs, so a remainder is judged over replicas or seeds.
        """
        return self.actual - self.predicted


def loss_account(
    trajectory: Trajectory, *, gradient: str = "gradient", indicator: str = "indicator", loss: str = "loss"
) -> LossAccount:
    """Add up the loss budget along a trajectory, from what three recorders saw.

    ‖ḡ‖² and ḡᵀHḡ vary from step to step and are cheap: best recorded at every step. Tr(HΣ_B) varies slowly. Between
    two measured steps each is interpolated linearly. η of every step is that of the trajectory, a schedule too. The
    account is drawn up where the loss was recorded, over the steps that all three cover.

    Args:
        trajectory: of SGD with the batch size that the indicator was told.
        gradient: what :func:`~noisescape.simulation.recorders.gradient` is called there.
        indicator: what :func:`~noisescape.simulation.recorders.indicator` is called there.
        loss: what :func:`~noisescape.simulation.recorders.loss` is called there.

    Raises:
        ValueError: one of them was not recorded, or the loss at fewer than two of the steps that both others cover.

    >>> import noisescape as ns
    >>> bowl = ns.landscapes.quadratic(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> watched = {
    ...     "loss": ns.recorders.loss,
    ...     "gradient": ns.recorders.gradient,
    ...     "indicator": ns.recorders.indicator(1),
    ... }
    >>> run = ns.simulate(bowl, ns.SGD(1), torch.zeros(2), lr=0.1, steps=3, record=watched, progress=False)
    >>> loss_account(run).noise
    tensor([0.0000, 0.0050, 0.0100, 0.0150], dtype=torch.float64)
    """
    if not isinstance(trajectory, Trajectory):
        raise InvalidTypeError(f"trajectory must be a Trajectory, not {kind_of(trajectory)}")
    names = (f"{gradient}/squared_norm", f"{gradient}/curvature", f"{indicator}/value", f"{indicator}/stderr")
    measured = [_record(trajectory, name) for name in names]
    losses = _record(trajectory, loss)
    first = max(int(record.steps[0]) for record in [losses, *measured])
    last = min(int(record.steps[-1]) for record in measured)
    covered = (losses.steps >= first) & (losses.steps <= last)
    if int(covered.sum()) < 2:
        raise InvalidValueError(
            f"'{gradient}' and '{indicator}' cover the steps {first} to {last} together, at fewer than two of "
            f"which '{loss}' was recorded; record all three from the first step to the last"
        )
    steps = losses.steps[covered]
    first, last = int(steps[0]), int(steps[-1])
    every = torch.arange(first, last)
    rates = torch.tensor(
        [trajectory.lr(step) if callable(trajectory.lr) else trajectory.lr for step in every.tolist()],
        dtype=torch.float64,
    )

    def summed(factors: Tensor, record: Record) -> Tensor:
        """Σ over the steps before each of ``steps``."""
        values = _interpolated(record, every)
        terms = factors.reshape(-1, *[1] * (values.ndim - 1)) * values
        return torch.cat([torch.zeros_like(terms[:1]), terms.cumsum(0)])[steps - first]

    squared_norm, curvature, trace, stderr = measured
    half = rates.square() / 2
    return LossAccount(
        steps=steps,
        descent=summed(-rates, squared_norm),
        curvature=summed(half, curvature),
        noise=summed(half, trace),
        noise_stderr=summed(half, stderr),
        actual=losses.values[covered] - losses.values[covered][0],
    )


def _record(trajectory: Trajectory, name: str) -> Record:
    if name not in trajectory.records:
        raise InvalidValueError(
            f"'{name}' was not recorded; run simulate with record={{'loss': recorders.loss, "
            "'gradient': recorders.gradient, 'indicator': recorders.indicator(batch_size)}"
        )
    return trajectory.records[name]


def _interpolated(record: Record, at: Tensor) -> Tensor:
    """Values at these steps, linear between two measured ones."""
    after = torch.searchsorted(record.steps, at, right=True).clamp_max(len(record.steps) - 1)
    before = after - 1
    share = (at - record.steps[before]) / (record.steps[after] - record.steps[before]).double()
    share = share.reshape(-1, *[1] * (record.values.ndim - 1))
    return (1 - share) * record.values[before] + share * record.values[after]
