"""What two simulations must share if one is to go on from the other's checkpoint, as far as it shows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import platform
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from noisescape.distributed import Shard
from noisescape.errors import InvalidValueError
from noisescape.risk import EmpiricalRisk, fingerprint
from noisescape.risk.passes import unchecked_losses
from noisescape.simulation.recorders import AtSteps, Recorder

SAME_LOSS = 1e-4
"""Relative difference of two losses that are the same: another number of threads changes the last digits."""
ROUNDING = 1e-6
"""The same for a mean whose terms cancel, relative to their size."""
NEARBY = 0.1
"""Standard deviation of the step from the start to a place where networks that start alike have parted."""
RECORDERS = "recorders as compiled by Python "


def simulation_identity(
    risk: EmpiricalRisk,
    dynamics: Any,
    lr: float | Sequence[float],
    steps: int,
    seed: int,
    recorders: Mapping[str, Recorder],
    plan: str,
    noise_every: int | None,
    start: Tensor,
    until: Callable[..., bool] | None = None,
) -> dict[str, str]:
    """By name, what must be equal; beside it :func:`losses_near`, which tells models and losses apart.

    Args:
        risk: its data and frozen tensors count, and what kind it is.
        dynamics: with all its constants.
        lr: η, or its value at every step.
        steps: how many.
        seed: of the noise.
        recorders: their code and what they hold, but not what they look up by name.
        plan: which recorders are called when.
        noise_every: how often the injected noise is recorded.
        start: θ₀, (D,) or (R, D).
        until: what ends the run early.
    """
    ends = {} if until is None else {"until": _digest(described(until).encode())}
    return ends | {
        "dynamics": repr(dynamics),
        "lr": repr(lr) if isinstance(lr, float) else _schedule(lr),
        "steps": str(steps),
        "seed": str(seed),
        "records": plan,
        "noise_every": str(noise_every),
        "start": f"{tuple(start.shape)} {_digest(_bytes(start))}",
        # a rank's device is its own
        "device": start.device.type,
        "risk": f"{type(risk).__qualname__} of N = {risk.sample_count}, D = {risk.dimension}, {fingerprint(risk)}",
        # bytecode of one Python is not that of another
        RECORDERS + ".".join(platform.python_version_tuple()[:2]): ", ".join(
            f"{name} {_digest(described(recorder).encode())}" for name, recorder in recorders.items()
        ),
    }


def differences(there: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What of two identities differs, in words; the first may be of another version of Python."""
    return [
        f"{key} {there.get(key)} there, {value} now"
        for key, value in now.items()
        if there.get(key) != value and not (key.startswith(RECORDERS) and key not in there)
    ]


def same_on_ranks(shard: Shard, own: Mapping[str, str]) -> None:
    """Refuse ranks that would not run the same simulation.

    Raises:
        ValueError: the message has what differs.
    """
    free = {name for name in own if name.startswith(RECORDERS)}  # which may hold a rank's own data
    for rank, theirs in enumerate(shard.objects("what is simulated", dict(own))):
        differing = [
            f"{name}: {theirs.get(name)} there, {own[name]} here"
            for name in own.keys() - free
            if theirs.get(name) != own[name]
        ]
        if differing:
            raise InvalidValueError(
                f"rank {rank} would not run the simulation that rank {shard.rank} runs ({'; '.join(differing)}): "
                "give every rank the same dynamics, learning rate, steps, seed and start"
            )


def losses_near(risk: EmpiricalRisk, start: Tensor) -> Tensor:
    """Mean and root mean square of the losses at θ₀ and at a place nearby, float64, (2, 2) or (2, 2, R).

    At θ₀ alone many networks have nearly the loss of chance. NaN where a closed form is not defined nearby.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(start.shape[-1], generator=generator, dtype=torch.float64).to(start)
    found = [_moments(unchecked_losses(risk, start))]
    try:
        found.append(_moments(unchecked_losses(risk, start + NEARBY * direction)))
    except (ArithmeticError, RuntimeError, ValueError):
        found.append(torch.full_like(found[0], math.nan))
    return torch.stack(found).cpu()


def differing_losses(there: Tensor, now: Tensor) -> list[str]:
    """Where two results of :func:`losses_near` differ by more than rounding, in words."""
    if there.shape != now.shape:
        return ["losses of another number of replicas"]
    found = []
    for place, one, other in zip(("at the start", "near the start"), there, now, strict=True):
        one, other = one.view(2, -1), other.view(2, -1)  # means and root mean squares, of every replica
        finite = torch.isfinite(one)
        gaps = torch.where(finite, other - one, 0.0).norm(dim=1)
        sizes = torch.where(finite, one, 0.0).norm(dim=1)
        # a mean that cancels is only known to the rounding error of its terms, whose size the second row is
        allowed = SAME_LOSS * sizes + ROUNDING * sizes[1]
        if not (torch.equal(finite, torch.isfinite(other)) and bool((gaps <= allowed).all())):
            means = " there, ".join(f"{float(values[0].mean()):.6g}" for values in (one, other))
            found.append(f"loss {place} {means} now")
    return found


def described(value: Any, seen: tuple[int, ...] = ()) -> str:
    """A recorder, or what it holds, in words that change when it does: bytecode, closures, constants, data.

    Not followed: what a function looks up by name in its module, and the inside of unknown objects.
    """
    if id(value) in seen:
        return "…"
    seen = (*seen, id(value))

    def each(values: Any) -> str:
        return ", ".join(described(item, seen) for item in values)

    match value:
        case AtSteps():  # the steps are part of the plan
            return described(value.recorder, seen)
        case EmpiricalRisk():
            return f"{type(value).__qualname__} {fingerprint(value)}"
        case Tensor():
            return f"tensor {tuple(value.shape)} {value.dtype} {_digest(_bytes(value))}"
        case None | bool() | int() | float() | complex() | str() | bytes() | torch.dtype() | torch.device():
            return repr(value)
        case functools.partial():
            return f"partial({described(value.func, seen)}, {each(value.args)}, {described(value.keywords, seen)})"
        case types.MethodType():
            return f"{described(value.__func__, seen)} of {described(value.__self__, seen)}"
        case types.FunctionType():
            return _function(value, seen)
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case dict():
            return f"{{{each(value.items())}}}"
        case tuple() | list():
            return f"[{each(value)}]"
        case set() | frozenset():
            return f"{{{', '.join(sorted(described(item, seen) for item in value))}}}"
        case _ if dataclasses.is_dataclass(value):
            held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{described(type(value), seen)}({described(held, seen)})"
    return described(type(value), seen)


def _function(function: types.FunctionType, seen: tuple[int, ...]) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    # this package's own functions go by name: its version is part of a run, and only warned of
    code = "" if name.startswith("noisescape.") else _digest(_code(function.__code__).encode())
    held = {}
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[variable] = cell.cell_contents
        except ValueError:  # not yet assigned
            held[variable] = None
    parts = (function.__defaults__, function.__kwdefaults__, held)
    return f"{name} {code} {', '.join(described(part, seen) for part in parts)}"


def _code(code: types.CodeType) -> str:
    constants = [_code(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _schedule(rates: Sequence[float]) -> str:
    values = torch.tensor(rates, dtype=torch.float64)
    return f"a schedule from {rates[0]:g} to {rates[-1]:g}, {_digest(_bytes(values))}"


def _moments(losses: Tensor) -> Tensor:
    losses = losses.detach().double()
    return torch.stack([losses.mean(-1), losses.square().mean(-1).sqrt()])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
