"""Runs that are stopped and go on from their checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import F64, bowl_risk, normal
from noisescape.dynamics import Dynamics
from noisescape.experiments.published import PublishedHessian, PublishedLeading
from noisescape.risk import EmpiricalRisk
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.simulation.recorders import Recorder
from noisescape.simulation.records import Trajectory

CONSTANTS = {"batch_size": 3, "k": 2, "rho": 0.05, "refresh": 3, "strength": 0.01, "shuffle_seed": 1}


ALL: dict[str, Dynamics] = {
    **{name: ns.dynamics_by_name(name, **CONSTANTS) for name in ns.DYNAMICS},
    "sgd without replacement": ns.SGD(3, replacement=False),
    "sgd by epochs": ns.SGD(3, sampling="epoch"),
    "svag": ns.SVAG(3, ell=3),
    "gld-full without replacement": ns.GLDFull(3, replacement=False),
    "gld-diagonal from batches": ns.GLDDiagonal(3, batches=2, refresh=3),
    "gld-dynamic from batches": ns.GLDDynamic(3, batches=3, refresh=2, replacement=False),
    "gld-leading rescaled": ns.GLDLeading(3, k=1, refresh=4, rescale=True),
    "matched constant": ns.MatchedTrace(ns.GLDConstant(1.0), 0.1),
    "matched diagonal": ns.MatchedTrace(ns.GLDDiagonal(3, refresh=3), 0.1),
    "matched hessian": ns.MatchedTrace(ns.GLDHessian(3, k=2, refresh=3), 0.1),
    "yoked leading": ns.Yoked(ns.GLDLeading(3, k=2, refresh=3), torch.linspace(0.5, 0.1, 10)),
    "yoked full": ns.Yoked(ns.GLDFull(3), torch.linspace(0.5, 0.1, 10)),
    "published leading": PublishedLeading(3, k=2, refresh=3),
    "published hessian": PublishedHessian(3, k=2, refresh=3),
}


ONE_ONLY = "published hessian"  # as published it takes a single θ


STEPS = 10


# after step s what was kept last is the state after s − 1 steps; 3, 6 and 9 are refreshes
STOPS: tuple[tuple[int, ...], ...] = ((1,), (2,), (4,), (6,), (10,), (3, 8), (5, 6), (4, 7, 9))


class Stop(Exception):
    """The interruption."""


def wobble(_risk: EmpiricalRisk, theta: Tensor) -> dict[str, Tensor | float]:
    return {"first": theta[..., 0], "norm": theta.norm(dim=-1), "constant": 3.0}


WATCH: dict[str, Recorder] = {
    "late": recorders.at_steps(wobble, [7, 9]),
    "loss": recorders.loss,
    "parts": wobble,
    "own": recorders.at_steps(recorders.loss, [0, 4, 5, 10]),
    "sharpness": recorders.at_steps(recorders.sharpness(0.1, draws=3), [0, 6]),
}


def exact(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def outcome(found: Trajectory) -> dict[str, Any]:
    """Everything a trajectory says, to the last bit and in order."""
    return {
        "theta": exact(found.theta),
        "diverged_at": exact(found.diverged_at),
        "records": [(name, exact(record.steps), exact(record.values)) for name, record in found.records.items()],
    }


def interrupted(
    stops: Sequence[int],
    checkpoint: Path,
    risk: EmpiricalRisk,
    dynamics: Dynamics,
    theta: Tensor,
    **options: Any,
) -> Trajectory:
    """The outcome of a run that was stopped after those steps, each time going on from what was kept."""
    done = 0
    for stop in (*stops, None):
        seen: list[int] = []

        def watch(step: int, stop: int | None = stop, seen: list[int] = seen) -> None:
            seen.append(step)
            if step == stop:
                raise Stop

        arguments = {"checkpoint": checkpoint, "checkpoint_seconds": 0, "progress": False, "on_step": watch}
        if stop is None:
            found = simulate(risk, dynamics, theta, **options, **arguments)
        else:
            with pytest.raises(Stop):
                simulate(risk, dynamics, theta, **options, **arguments)
            assert checkpoint.exists() == (stop > 1)
        if seen:  # none where the last replica diverged on the first step
            assert seen[0] == done + 1, "it goes on where it was kept, and does not start again"
        done = max(done, (stop or 0) - 1)
    assert not checkpoint.exists(), "the checkpoint is gone in the end"
    assert list(checkpoint.parent.iterdir()) == []
    return found


def assert_resumes(
    checkpoint: Path,
    risk: EmpiricalRisk,
    dynamics: Dynamics,
    theta: Tensor,
    stops: Sequence[Sequence[int]] = STOPS,
    **options: Any,
) -> Trajectory:
    options = {"lr": 0.05, "steps": STEPS, "record": WATCH, "every": 3, "seed": 5, "noise_every": 2} | options
    whole = simulate(risk, dynamics, theta, progress=False, **options)
    expected = outcome(whole)
    for several in stops:
        found = outcome(interrupted(several, checkpoint, risk, dynamics, theta, **options))
        for part, value in expected.items():
            assert found[part] == value, f"{part} after a stop at {several}"
    return whole


def go(checkpoint: Path, *, stop: int | None = None, **changes: Any) -> Trajectory:
    def watch(step: int) -> None:
        if step == stop:
            raise Stop

    options = {
        "risk": bowl_risk(),
        "dynamics": ns.GLDDiagonal(3, refresh=2),
        "theta": torch.tensor([0.5, -1.0, 0.3], dtype=F64),
        "lr": 0.05,
        "steps": 8,
        "every": 2,
        "seed": 1,
        "noise_every": None,
        "record": {"loss": recorders.loss},
    } | changes
    return simulate(**options, progress=False, checkpoint=checkpoint, checkpoint_seconds=0, on_step=watch)


def kept(checkpoint: Path, **changes: Any) -> None:
    """Leave the checkpoint of a run that was stopped."""
    with pytest.raises(Stop):
        go(checkpoint, stop=4, **changes)
    assert checkpoint.exists()


def larger_risk(dtype: torch.dtype, hidden: int, count: int) -> EmpiricalRisk:
    """A network of 13·hidden + 3 parameters; at most 128 of them, and its Hessian is dense."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(9, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 3))
    data = normal(count, 9, seed=1, dtype=dtype), torch.arange(count) % 3
    return EmpiricalRisk(model.to(dtype), torch.nn.functional.cross_entropy, data)


class Shifted(torch.nn.Module):
    """Adds a tensor that is not trained, to one output."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([shift, 0.0, 0.0]))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs + self.shift


def network(
    *,
    data_seed: int = 1,
    labels: int = 0,
    activation: Callable[[], torch.nn.Module] = torch.nn.Tanh,
    scale: float = 1.0,
    loss: Callable[..., Tensor] = torch.nn.functional.cross_entropy,
    shift: float = 0.0,
) -> EmpiricalRisk:
    """Always of D = 33 and N = 12; weights as small as an initialisation may be, so that all start at log 3."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), activation(), torch.nn.Linear(4, 3, bias=False))
    model.append(Shifted(shift))
    points = scale * normal(12, 4, seed=data_seed)
    targets = torch.arange(12) % 3
    targets[:labels] = 2 - targets[:labels]
    return EmpiricalRisk(model.double(), loss, (points, targets))
