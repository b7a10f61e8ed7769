"""Run a dynamics: many replicas at once, recorders at chosen steps, checkpoints, divergence as an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescape.distributed.shard import is_first
from noisescape.dynamics import Dynamics
from noisescape.dynamics.base import check_dynamics
from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
from noisescape.risk import EmpiricalRisk
from noisescape.risk.arguments import check_point
from noisescape.risk.passes import unchecked_losses
from noisescape.runs.progress import steps_bar
from noisescape.scalars import check_number, check_positive, check_real, check_seed, check_whole
from noisescape.simulation.captured import captured_step
from noisescape.simulation.checkpoint import Checkpoint, kept_kind
from noisescape.simulation.divergence import lost
from noisescape.simulation.identity import losses_near, same_on_ranks, simulation_identity
from noisescape.simulation.recorders import Recorder, loss
from noisescape.simulation.records import Book, Record, Trajectory


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
    checkpoint: Path | str | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
    until: Callable[[Mapping[str, Record]], bool] | None = None,
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
            data and the values of a schedule among them, and the losses at the start. Of shards, rank 0 keeps it;
            the run goes on from it on any number of ranks that hold the same samples in the same order.
        checkpoint_seconds: how often it is written.
        progress: show a bar on the terminal's error stream.
        on_step: called after every step with the number of steps done.
        until: the run ends before ``steps`` where this is true of the records so far; asked after each step at
            which a recorder was due. Of a single θ.

    A replica that leaves every bound is recorded as diverged: its later values are NaN, the others go on.

    Raises:
        ValueError: constants that do not fit the risk; more steps than the dynamics has noise for; a start that is
            not finite; steps or lr ≤ 0; a checkpoint of another run.
        TypeError: a noise whose covariance no checkpoint can hold, where one is asked for.
        CorruptFileError: a damaged checkpoint.

    >>> from noisescape import EmpiricalRisk, GD
    >>> bowl = EmpiricalRisk.from_losses(lambda w: (w**2).sum(0, keepdim=True), torch.ones(2))
    >>> simulate(bowl, GD(), torch.ones(2), lr=0.25, steps=2, progress=False).theta
    tensor([0.2500, 0.2500])
    """
    check_point(risk, theta)
    check_dynamics(dynamics)
    check_whole("steps", steps)
    check_seed(seed)
    for name, value in (("every", every), ("noise_every", noise_every), ("replicas", replicas)):
        if value is not None:
            check_whole(name, value)
    check_number("checkpoint_seconds", checkpoint_seconds)  # infinite: none but the last
    if not checkpoint_seconds >= 0:
        raise InvalidValueError(f"checkpoint_seconds must be at least 0, not {checkpoint_seconds}")
    for name, function in (("on_step", on_step), ("until", until)):
        if function is not None and not callable(function):
            raise InvalidTypeError(f"{name} must be a function, not {type(function).__name__}")
    rates = _rates(lr, steps)
    if replicas is not None:
        if theta.ndim != 1:
            raise InvalidValueError(
                "replicas copies a single θ (D,); a start of shape (R, D) already has its replicas"
            )
        theta = theta.expand(replicas, -1)
    # contiguous here and at every step: a resumed run gets its tensors so, and layout decides how sums round
    theta = theta.detach().clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(theta).all()):
        raise InvalidValueError("the starting θ is not finite")
    state = dynamics.init(risk)
    if dynamics.longest is not None and steps > dynamics.longest:
        raise InvalidValueError(f"{dynamics.name} has noise for {dynamics.longest} steps, not for {steps}")
    if until is not None and theta.ndim != 1:
        raise InvalidValueError("until ends the run of a single θ (D,): replicas do not end together")
    generator = torch.Generator(theta.device).manual_seed(seed)
    every = max(1, steps // 100) if every is None else every
    book = Book({"loss": loss} if record is None else record, every, steps)
    start = theta.clone()
    diverged_at = torch.full(theta.shape[:-1], -1, device=theta.device)
    first = taken = 0
    kept = None
    if checkpoint is not None or risk.shard is not None:
        identity = simulation_identity(
            risk, dynamics, rates, steps, seed, book.recorders, book.plan(), noise_every, start, until
        )
        if risk.shard is not None:
            same_on_ranks(risk.shard, identity)
    if checkpoint is not None:
        kept = Checkpoint(Path(checkpoint), identity, losses_near(risk, start), risk.shard)
        kept.check_room()
    if kept is not None and kept.exists():
        first, theta, state, diverged_at = kept.restore(generator, book, theta.device)
    else:
        book.write(0, risk, theta, diverged_at)
    saved = time.monotonic()
    graph = captured_step(risk, dynamics, rates, start, generator, steps - first)

    with steps_bar(dynamics.name, steps, shown=progress and is_first(risk.shard)) as advance:
        advance(first)
        for step in range(first, steps):
            if kept is not None and step > first and time.monotonic() - saved >= checkpoint_seconds:
                kept.save(step, theta, state, generator, diverged_at, book)
                saved = time.monotonic()
            noted = noise_every is not None and step % noise_every == 0
            if graph is not None and not noted:
                theta, diverged_at = graph.replay(step, theta, diverged_at)
                state = state.next()
                # to look at values is to wait for the device
                looked = step + 1 == steps or book.due(step + 1)
            else:
                try:
                    gradient, state = dynamics.noisy_gradient(risk, theta, state, generator)
                    if noted:
                        noise = gradient - risk.gradient(theta)
                        book.note("injected", step, noise.double().square().sum(-1), diverged_at)
                    rate = rates[step] if isinstance(rates, Sequence) else rates
                    theta = (theta - rate * gradient).contiguous()
                except (ArithmeticError, RuntimeError):
                    # an eigensolver that chokes on overflowing derivatives is a divergence, all else a bug
                    if theta.ndim == 2 or bool(torch.isfinite(unchecked_losses(risk, theta)).all()):
                        raise
                    theta = torch.full_like(theta, torch.nan)
                if kept is not None and step == first:
                    kept_kind(state.covariance)  # now, not when the first checkpoint is due
                gone = lost(theta)
                looked = bool(gone.any())
                if looked:
                    diverged_at = torch.where(gone & (diverged_at < 0), step + 1, diverged_at)
                    # diverged replicas idle at the start, where every derivative is finite
                    theta = torch.where(gone[..., None], start, theta)
            if looked and bool((diverged_at >= 0).all()):
                taken = int(diverged_at.max())
                book.close(taken)
                break
            seen = book.write(step + 1, risk, theta, diverged_at)
            taken = step + 1
            advance(1)
            if on_step is not None:
                on_step(taken)
            if until is not None and seen and _ended(until(book.records())):
                break

    if kept is not None:
        kept.remove()
    theta = torch.where((diverged_at >= 0)[..., None], torch.nan, theta)
    return Trajectory(dynamics, lr, steps, seed, book.records(), theta, diverged_at.cpu(), taken)


def _rates(lr: float | Callable[[int], float], steps: int) -> float | Sequence[float]:
    """η, or its value at each step; all asked for before the first, so that a bad one costs nothing."""
    if not callable(lr):
        check_positive("lr", lr)
        return float(lr)
    rates = [lr(step) for step in range(steps)]
    for step, rate in enumerate(rates):
        check_real(f"lr({step}), of the learning-rate schedule,", rate, 0)
    return [float(rate) for rate in rates]


def _ended(answer: Any) -> bool:
    """What ``until`` said."""
    if not isinstance(answer, bool) and getattr(answer, "shape", None) != ():  # a tensor's or NumPy's
        raise InvalidTypeError(f"until must answer True or False, not {kind_of(answer)}")
    return bool(answer)
