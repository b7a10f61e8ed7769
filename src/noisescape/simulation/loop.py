"""Run a dynamics: many replicas at once, recorders at chosen steps, checkpoints, divergence as an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape.dynamics import Dynamics, NoiseState
from noisescape.errors import CorruptFileError, InvalidValueError
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import unchecked_losses
from noisescape.runs.progress import steps_bar
from noisescape.runs.storage import read_bundle, write_bundle
from noisescape.simulation.identity import differences, differing_losses, losses_near, simulation_identity
from noisescape.simulation.recorders import Recorder, loss

RUNAWAY = 1e8
"""A replica with a coordinate beyond this, or not finite, has diverged."""


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
    """

    dynamics: Dynamics
    lr: float | Callable[[int], float]
    steps: int
    seed: int
    records: Mapping[str, Record]
    theta: Tensor
    diverged_at: Tensor

    @property
    def diverged(self) -> Tensor:
        """Whether each replica diverged, bool, (R,) or a scalar."""
        return self.diverged_at >= 0

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


def simulate(
    risk: EmpiricalRisk,
    dynamics: Dynamics,
    theta: Tensor,
    *,
    lr: float | Callable[[int], float],
    steps: int,
    replicas: int | None = None,
    record: Mapping[str, Recorder] | None = None,
    every: int | None = None,
    seed: int = 0,
    noise_every: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """θ_{t+1} = θ_t − η_t(∇L(θ_t) + ε_t) for ``steps`` steps.

    Args:
        risk: L.
        dynamics: the law of ε.
        theta: the start, (D,), or (R, D).
        lr: η, or a function of the step (0-based), asked for all its values before the first step.
        steps: how many.
        replicas: R copies of a single ``theta`` with independent noise, all moved at once. Closed-form
            risks broadcast; models are mapped by ``torch.func.vmap``, which pays for small ones.
        record: recorders by name, by default ``{"loss": loss}``. Each is called as
            ``recorder(risk, theta)`` and returns a scalar, one value a replica (R,), or a mapping of
            such. A :func:`~noisescape.simulation.recorders.at_steps` recorder brings its own steps.
        every: how often plain recorders are called: at steps 0, every, 2·every, … and at the end.
            Default: 100 times.
        seed: of the noise; the same seed gives the same run on the same machine.
        noise_every: record ‖ε_t‖², the gradient noise really injected, as "injected" on steps 0, noise_every, …,
            whatever the dynamics says of itself. Each costs one full gradient. Default: never.
        checkpoint: a file that holds the unfinished run: parameters, step, generator, noise state, records.
            If it exists the run continues from it, to the same bits as without interruption on the same
            machine; it is removed at the end. It is of this run only if all arguments are the same, the risk's
            data and the values of a schedule among them, and the losses at the start.
        checkpoint_seconds: how often it is written.
        progress: show a bar on the terminal's error stream.
        on_step: called after every step with the number of steps done.

    A replica that leaves every bound is recorded as diverged: its later values are NaN, the others go on.

    Raises:
        ValueError: constants that do not fit the risk; a start that is not finite; steps or lr ≤ 0; a
            checkpoint of another run.
        CorruptFileError: a damaged checkpoint.

    >>> from noisescape import EmpiricalRisk, GD
    >>> bowl = EmpiricalRisk.from_losses(lambda w: (w**2).sum(0, keepdim=True), torch.ones(2))
    >>> simulate(bowl, GD(), torch.ones(2), lr=0.25, steps=2, progress=False).theta
    tensor([0.2500, 0.2500])
    """
    if steps < 1:
        raise InvalidValueError(f"steps must be at least 1, not {steps}")
    rates = _rates(lr, steps)
    if replicas is not None:
        if theta.ndim != 1:
            raise InvalidValueError(
                "replicas copies a single θ (D,); a start of shape (R, D) already has its replicas"
            )
        if replicas < 1:
            raise InvalidValueError(f"replicas must be at least 1, not {replicas}")
        theta = theta.expand(replicas, -1)
    # contiguous here and at every step: a resumed run gets its tensors so, and layout decides how sums round
    theta = theta.detach().clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(theta).all()):
        raise InvalidValueError("the starting θ is not finite")
    state = dynamics.init(risk, theta)
    generator = torch.Generator(theta.device).manual_seed(seed)
    every = max(1, steps // 100) if every is None else every
    book = _Book({"loss": loss} if record is None else record, every, steps)
    if noise_every is not None and noise_every < 1:
        raise InvalidValueError(f"noise_every must be at least 1, not {noise_every}")
    start = theta.clone()
    diverged_at = torch.full(theta.shape[:-1], -1, device=theta.device)
    first = 0
    keeper = None
    if checkpoint is not None:
        identity = simulation_identity(
            risk, dynamics, rates, steps, seed, book.recorders, book.plan(), noise_every, start
        )
        keeper = _Keeper(checkpoint, identity, losses_near(risk, start))
    if keeper is not None and keeper.path.exists():
        first, theta, state, diverged_at = keeper.restore(generator, book, theta.device)
    else:
        book.write(0, risk, theta, diverged_at)
    saved = time.monotonic()

    with steps_bar(dynamics.name, steps, shown=progress) as advance:
        advance(first)
        for step in range(first, steps):
            if keeper is not None and step > first and time.monotonic() - saved >= checkpoint_seconds:
                keeper.save(step, theta, state, generator, diverged_at, book)
                saved = time.monotonic()
            try:
                slope, state = dynamics.noisy_gradient(risk, theta, state, generator)
                if noise_every is not None and step % noise_every == 0:
                    noise = slope - risk.gradient(theta)
                    book.note("injected", step, noise.double().square().sum(-1), diverged_at)
                rate = rates[step] if isinstance(rates, Sequence) else rates
                theta = (theta - rate * slope).contiguous()
            except (ArithmeticError, RuntimeError):
                # an eigensolver that chokes on overflowing derivatives is a divergence, all else a bug
                if theta.ndim == 2 or bool(torch.isfinite(unchecked_losses(risk, theta)).all()):
                    raise
                theta = torch.full_like(theta, torch.nan)
            lost = ~(theta.abs().amax(-1) < RUNAWAY)  # also true for NaN
            if bool(lost.any()):
                diverged_at = torch.where(lost & (diverged_at < 0), step + 1, diverged_at)
                # diverged replicas idle at the start, where every derivative is finite
                theta = torch.where(lost[..., None], start, theta)
                if bool((diverged_at >= 0).all()):
                    book.close(step + 1)
                    break
            book.write(step + 1, risk, theta, diverged_at)
            advance(1)
            if on_step is not None:
                on_step(step + 1)

    if keeper is not None:
        keeper.path.unlink(missing_ok=True)
    theta = torch.where((diverged_at >= 0)[..., None], torch.nan, theta)
    return Trajectory(dynamics, lr, steps, seed, book.records(), theta, diverged_at.cpu())


class _Book:
    """Collects what the recorders return."""

    def __init__(self, recorders: Mapping[str, Recorder], every: int, steps: int) -> None:
        if every < 1:
            raise InvalidValueError(f"every must be at least 1, not {every}")
        for name, recorder in recorders.items():
            due = getattr(recorder, "steps", None)
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
            f"{name} at {sorted(due)}" if (due := getattr(recorder, "steps", None)) is not None else name
            for name, recorder in self.recorders.items()
        ]
        return f"{', '.join(plans) or 'none'}, every {self._every}"

    def write(self, step: int, risk: EmpiricalRisk, theta: Tensor, diverged_at: Tensor) -> None:
        for name, recorder in self.recorders.items():
            if self._due(recorder, step):
                outcome = recorder(risk, theta)
                parts = outcome if isinstance(outcome, Mapping) else {"": outcome}
                for part, value in parts.items():
                    self.note("/".join(filter(None, (name, part))), step, value, diverged_at)

    def note(self, name: str, step: int, value: Any, diverged_at: Tensor) -> None:
        """One value, or one a replica; NaN for those that have diverged."""
        full = torch.as_tensor(value, dtype=torch.float64).cpu()
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
        return {
            name: Record(torch.tensor(steps), torch.stack(values)) for name, (steps, values) in self._seen.items()
        }

    def _due(self, recorder: Recorder, step: int) -> bool:
        chosen = getattr(recorder, "steps", None)
        if chosen is not None:
            return step in chosen
        return step % self._every == 0 or step == self._steps

    def restore(self, records: Mapping[str, Record]) -> None:
        """Go on where another book ended."""
        self._seen = {
            name: (record.steps.tolist(), list(record.values.unbind())) for name, record in records.items()
        }


@dataclass(frozen=True)
class _Keeper:
    """The checkpoint of one simulation and no other.

    Attributes:
        path: of the file.
        identity: what must be equal, by name.
        losses: at the start and nearby, equal up to rounding.
    """

    path: Path
    identity: Mapping[str, str]
    losses: Tensor

    def save(
        self,
        step: int,
        theta: Tensor,
        state: NoiseState,
        generator: torch.Generator,
        diverged_at: Tensor,
        book: _Book,
    ) -> None:
        """Write the unfinished run."""
        tensors = {
            "theta": theta,
            "diverged_at": diverged_at,
            "generator": generator.get_state(),
            "losses": self.losses,
        }
        if state.root is not None:
            tensors["root"] = state.root
        records = book.records()
        for name, record in records.items():
            tensors |= {f"steps/{name}": record.steps, f"values/{name}": record.values}
        notes = {
            "identity": dict(self.identity),
            "step": step,
            "noise_step": state.step,
            "records": list(records),
        }
        write_bundle(self.path, tensors, notes)

    def restore(
        self, generator: torch.Generator, book: _Book, device: torch.device
    ) -> tuple[int, Tensor, NoiseState, Tensor]:
        """Step, θ, noise state and divergences; sets the generator and the book."""
        bundle = read_bundle(self.path)
        tensors = bundle.tensors
        if "identity" not in bundle.notes:
            raise CorruptFileError(f"{self.path} is no checkpoint of a simulation: remove it to start afresh")
        told = differences(bundle.notes["identity"], self.identity)
        if not told:
            told = differing_losses(tensors["losses"], self.losses)
        if told:
            raise InvalidValueError(
                f"the checkpoint {self.path} is of another run ({'; '.join(told)}): remove it to start afresh, or "
                "go on with what it was begun with"
            )
        generator.set_state(tensors["generator"])
        book.restore(
            {name: Record(tensors[f"steps/{name}"], tensors[f"values/{name}"]) for name in bundle.notes["records"]}
        )
        root = tensors["root"].to(device) if "root" in tensors else None
        state = NoiseState(bundle.notes["noise_step"], root)
        return bundle.notes["step"], tensors["theta"].to(device), state, tensors["diverged_at"].to(device)


def _rates(lr: float | Callable[[int], float], steps: int) -> float | Sequence[float]:
    """η, or its value at each step; all told before the first, so that a bad one costs nothing."""
    if not callable(lr):
        if not lr > 0:
            raise InvalidValueError(f"lr must be positive, not {lr}")
        return float(lr)
    rates = [float(lr(step)) for step in range(steps)]
    for step, rate in enumerate(rates):
        if not rate >= 0:
            raise InvalidValueError(
                f"the learning-rate schedule gave {rate} at step {step}; it must not be negative"
            )
    return rates
