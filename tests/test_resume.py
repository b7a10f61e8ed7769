"""Stopped at any moment and continued, a run ends in the same bits."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from typer.testing import CliRunner

import noisescape as ns
from cases import F64, Case, bowl_risk, normal
from noisescape.cli import app
from noisescape.dynamics import Dynamics
from noisescape.errors import CorruptFileError
from noisescape.experiments import escape, one_hidden_layer, toy_2d
from noisescape.experiments.digits import DigitsConfig, run_digits
from noisescape.experiments.one_hidden_layer import OneHiddenLayerConfig, run_one_hidden_layer
from noisescape.experiments.published import PublishedHessian, PublishedLeading
from noisescape.experiments.toy_2d import RunningSums, Toy2DConfig, run_toy_2d
from noisescape.risk import EmpiricalRisk, fingerprint
from noisescape.risk.closed_form import SampleLoss
from noisescape.runs import tasks
from noisescape.runs.run import Run
from noisescape.runs.storage import read_bundle, write_bundle
from noisescape.simulation import recorders
from noisescape.simulation.identity import described, differing_losses, losses_near
from noisescape.simulation.loop import simulate
from noisescape.simulation.recorders import Recorder
from noisescape.simulation.records import Trajectory
from noisescape.theory.landscapes import toy_2d as toy_risk
from noisescape.theory.landscapes import toy_points

CONSTANTS = {"batch_size": 3, "k": 2, "rho": 0.05, "refresh": 3, "strength": 0.01, "shuffle_seed": 1}
ALL: dict[str, Dynamics] = {
    **{name: ns.dynamics_by_name(name, **CONSTANTS) for name in ns.DYNAMICS},
    "sgd without replacement": ns.SGD(3, replacement=False),
    "gld-full without replacement": ns.GLDFull(3, replacement=False),
    "gld-diagonal from batches": ns.GLDDiagonal(3, batches=2, refresh=3),
    "gld-dynamic from batches": ns.GLDDynamic(3, batches=3, refresh=2, replacement=False),
    "gld-leading rescaled": ns.GLDLeading(3, k=1, refresh=4, rescale=True),
    "matched constant": ns.MatchedTrace(ns.GLDConstant(1.0), 0.1),
    "matched diagonal": ns.MatchedTrace(ns.GLDDiagonal(3, refresh=3), 0.1),
    "matched hessian": ns.MatchedTrace(ns.GLDHessian(3, k=2, refresh=3), 0.1),
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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "sim" / "kept.safetensors"


@pytest.fixture(autouse=True)
def _folder(checkpoint: Path) -> None:
    checkpoint.parent.mkdir()


# ---------------------------------------------------------------------- simulate: to the same bits


@pytest.mark.parametrize(
    ("name", "replicas"), [(n, r) for n in ALL for r in (None, 1, 3) if r is None or n != ONE_ONLY]
)
def test_a_closed_form_goes_on_to_the_same_bits(name: str, replicas: int | None, checkpoint: Path) -> None:
    start = torch.tensor([0.5, -1.0, 0.3], dtype=F64)
    found = assert_resumes(checkpoint, bowl_risk(), ALL[name], start, replicas=replicas)
    assert not found.diverged.any()
    assert found.records.keys() == {
        *(f"{name}/{part}" for name in ("parts", "late") for part in ("first", "norm", "constant")),
        *(f"sharpness/{part}" for part in ("signed", "signed_stderr", "absolute", "absolute_stderr")),
        "loss",
        "own",
        "injected",
    }


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("name", "replicas"), [(n, r) for n in ALL for r in (None, 3) if r is None or n != ONE_ONLY]
)
def test_a_network_goes_on_to_the_same_bits(
    name: str, replicas: int | None, dtype: torch.dtype, mlp: Case, checkpoint: Path
) -> None:
    start = mlp.theta.to(dtype)
    if replicas:
        start = start + 0.1 * normal(replicas, len(start), seed=9, dtype=dtype)
    assert_resumes(checkpoint, mlp.risk(dtype), ALL[name], start, stops=((2,), (6, 9)))


LARGE = [
    ns.GLDLeading(4, k=5, refresh=4),
    ns.GLDHessian(4, k=6, refresh=4),
    ns.GLDTopEigenvector(4, refresh=4),
    ns.MatchedTrace(ns.GLDLeading(4, k=7, refresh=4), 0.3),
    PublishedLeading(4, k=5, refresh=4),
    PublishedHessian(4, k=5, refresh=4),
]


def larger_risk(dtype: torch.dtype, hidden: int, count: int) -> EmpiricalRisk:
    """A network of 13·hidden + 3 parameters; at most 128 of them, and its Hessian is dense."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(9, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 3))
    data = normal(count, 9, seed=1, dtype=dtype), torch.arange(count) % 3
    return EmpiricalRisk(model.to(dtype), torch.nn.functional.cross_entropy, data)


@pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")
@pytest.mark.parametrize(("hidden", "count"), [(18, 40), (18, 300), (8, 40), (8, 200)])
@pytest.mark.parametrize(
    ("dynamics", "replicas"),
    [(made, r) for made in LARGE for r in (None, 2) if r is None or not isinstance(made, PublishedHessian)],
    ids=lambda value: f"{type(value).__name__} {value.name}" if isinstance(value, Dynamics) else str(value),
)
def test_noise_of_several_directions_goes_on_to_the_same_bits_wherever_it_lies_in_the_file(
    dynamics: Dynamics, hidden: int, count: int, replicas: int | None, checkpoint: Path
) -> None:
    """Products with the root round otherwise from an odd address or in another layout; names move it there."""
    for dtype in (torch.float32, F64):
        risk = larger_risk(dtype, hidden, count)
        for length in (1, 9, 17, 25):
            record = {"w" * length: recorders.loss}
            assert_resumes(
                checkpoint,
                risk,
                dynamics,
                risk.parameters(),
                stops=((3,),),
                steps=4,
                record=record,
                replicas=replicas,
                noise_every=None,
            )


@pytest.mark.parametrize("start", ["transposed", "expanded", "one coordinate after the other"])
@pytest.mark.parametrize("name", ["gd", "sgd", "gld-leading", "gld-hessian", "gld-full"])
def test_a_strided_start_goes_on_to_the_same_bits(name: str, start: str, mlp: Case, checkpoint: Path) -> None:
    made = {
        "transposed": mlp.theta[:, None].expand(-1, 3).clone().T,
        "expanded": mlp.theta.expand(3, -1),
        "one coordinate after the other": torch.stack([mlp.theta, mlp.theta])[0],
    }
    assert_resumes(checkpoint, mlp.risk(), ALL[name], made[start], stops=((2,), (5,)))


@pytest.mark.parametrize("kind", [SampleLoss, RunningSums])
@pytest.mark.parametrize("name", toy_2d.toy_dynamics(400.0))
def test_the_toys_replicas_go_on_to_the_same_bits(name: str, kind: type[SampleLoss], checkpoint: Path) -> None:
    points = toy_points(5, 20, torch.Generator().manual_seed(0), torch.float32)
    record = {name: recorder for name, recorder in WATCH.items() if name != "sharpness"}
    risk, start = toy_risk(points, kind=kind), torch.ones(5, 2)
    assert_resumes(checkpoint, risk, toy_2d.toy_dynamics(400.0)[name], start, lr=0.005, record=record)


@pytest.mark.parametrize("name", [name for name in ALL if name != ONE_ONLY])
def test_a_diverging_replica_is_remembered(name: str, checkpoint: Path) -> None:
    points = (0.3 * normal(8, 2, seed=3)).to(torch.float32)

    def loss(theta: Tensor, point: Tensor) -> Tensor:
        return ((theta - point) ** 4).sum(-1) / 4

    risk = EmpiricalRisk.from_sample_loss(loss, points, torch.zeros(2))
    starts = torch.tensor([[0.1, -0.1], [30.0, 30.0], [0.0, 0.2]])
    found = assert_resumes(checkpoint, risk, ALL[name], starts, stops=((2,), (4,), (5, 9)), lr=0.1)
    assert found.diverged.tolist() == [False, True, False]
    assert found.diverged_at[1] in (2, 3)


@pytest.mark.parametrize("replicas", [None, 2])
def test_a_run_that_diverges_after_the_stop_ends_as_it_would_have(replicas: int | None, checkpoint: Path) -> None:
    start = torch.tensor([1e4, -1.0, 0.3], dtype=F64)
    found = assert_resumes(
        checkpoint, bowl_risk(), ns.SGD(3), start, stops=((2,), (4,), (3, 5)), lr=2.0, replicas=replicas
    )
    assert found.diverged.all()
    assert (found.diverged_at > 5).all()
    assert (found.diverged_at < STEPS).all()


@pytest.mark.parametrize("recorded", [{}, {"mean": lambda _risk, theta: float(theta.mean())}])
def test_little_or_nothing_recorded_is_no_hindrance(recorded: dict[str, Recorder], checkpoint: Path) -> None:
    start = torch.ones(3, dtype=F64)
    assert_resumes(checkpoint, bowl_risk(), ns.SGD(3), start, record=recorded, noise_every=None)


def test_a_schedule_goes_on_at_its_step(checkpoint: Path) -> None:
    start = torch.ones(3, dtype=F64)
    assert_resumes(checkpoint, bowl_risk(), ns.SGD(3), start, lr=lambda step: 0.1 / (1 + step))


def test_values_that_are_not_finite_are_kept_as_they_are(checkpoint: Path) -> None:
    watch = {
        "odd": lambda _risk, theta: torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=F64)[: theta.shape[0]]
    }
    assert_resumes(checkpoint, bowl_risk(), ns.SGD(3), normal(3, 3, seed=1), record=watch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_stops_it(error: type[BaseException], checkpoint: Path) -> None:
    start, options = torch.ones(3, dtype=F64), {"lr": 0.1, "steps": 6, "progress": False}

    def stop(step: int) -> None:
        if step == 4:
            raise error

    with pytest.raises(error):
        simulate(
            bowl_risk(), ns.SGD(3), start, checkpoint=checkpoint, checkpoint_seconds=0, on_step=stop, **options
        )
    found = simulate(bowl_risk(), ns.SGD(3), start, checkpoint=checkpoint, **options)
    assert outcome(found) == outcome(simulate(bowl_risk(), ns.SGD(3), start, **options))


def test_an_uninterrupted_run_is_the_same_with_and_without_checkpoints(checkpoint: Path) -> None:
    start = torch.ones(3, dtype=F64)
    assert_resumes(checkpoint, bowl_risk(), ns.GLDLeading(3, k=2, refresh=4), start, stops=((),))


def test_a_checkpoint_is_written_no_more_often_than_asked(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count()  # a second a look
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    seen: list[int] = []

    def watch(step: int) -> None:
        if checkpoint.exists():
            kept = read_bundle(checkpoint).notes["step"]
            seen.append(kept) if kept not in seen else None

    start = torch.ones(3, dtype=F64)
    options = {"lr": 0.1, "steps": 40, "progress": False, "checkpoint": checkpoint}
    simulate(bowl_risk(), ns.GD(), start, checkpoint_seconds=10, on_step=watch, **options)
    assert 2 <= len(seen) <= 4, seen


# ---------------------------------------------------------------------- simulate: what is refused


def kept(checkpoint: Path, **changes: Any) -> None:
    """Leave the checkpoint of a run that was stopped."""
    with pytest.raises(Stop):
        go(checkpoint, stop=4, **changes)
    assert checkpoint.exists()


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, r"seed 1 there, 2 now"),
        ({"lr": 0.06}, r"lr 0\.05 there, 0\.06 now"),
        ({"lr": lambda _step: 0.05}, r"lr 0\.05 there, a schedule from 0\.05 to 0\.05, [0-9a-f]+ now"),
        ({"steps": 9}, r"steps 8 there, 9 now"),
        ({"every": 4}, r"records loss, every 2 there, loss, every 4 now"),
        ({"noise_every": 2}, r"noise_every None there, 2 now"),
        ({"dynamics": ns.GLDDiagonal(4, refresh=2)}, r"dynamics GLDDiagonal\(batch_size=3.*batch_size=4"),
        ({"dynamics": ns.GLDDiagonal(3, refresh=3)}, r"refresh=2.* there, .*refresh=3.* now"),
        ({"dynamics": ns.SGD(3)}, r"dynamics GLDDiagonal\(.* there, SGD\("),
        ({"theta": torch.tensor([0.5, -1.0, 0.30001], dtype=F64)}, r"start .*[0-9a-f]+ there, .*[0-9a-f]+ now"),
        ({"seed": 2, "lr": 0.06}, r"lr 0\.05 there, 0\.06 now; seed 1 there, 2 now"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_kept(
    changes: dict[str, Any], message: str, checkpoint: Path
) -> None:
    kept(checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=f"is of another run .*{message}.*: remove it to start afresh"):
        go(checkpoint, **changes)
    assert checkpoint.read_bytes() == before
    assert not go(checkpoint).diverged


def test_published_noise_is_not_continued_as_the_methods(checkpoint: Path) -> None:
    kept(checkpoint, dynamics=PublishedLeading(3, k=2, refresh=2))
    with pytest.raises(ValueError, match=r"dynamics PublishedLeading\(.* there, GLDLeading\("):
        go(checkpoint, dynamics=ns.GLDLeading(3, k=2, refresh=2))


@pytest.mark.parametrize(
    ("there", "now"),
    [
        ({"replicas": None}, {"replicas": 1}),
        ({"theta": torch.zeros(3, dtype=F64)}, {"theta": torch.zeros(3, dtype=F64), "replicas": 1}),
        ({"theta": torch.zeros(2, 3, dtype=F64)}, {"theta": torch.zeros(3, 3, dtype=F64)}),
        ({"replicas": 2}, {"replicas": 3}),
    ],
)
def test_another_number_of_replicas_is_another_run(
    there: dict[str, Any], now: dict[str, Any], checkpoint: Path
) -> None:
    kept(checkpoint, **there)
    with pytest.raises(ValueError, match=r"is of another run .*start"):
        go(checkpoint, **now)


@pytest.mark.parametrize(
    "record",
    [
        {"loss": recorders.loss, "more": recorders.loss},
        {},
        {"norm": wobble},
        {"loss": recorders.at_steps(recorders.loss, [8])},
    ],
    ids=["one more", "none", "others", "at other steps"],
)
def test_what_is_recorded_is_part_of_the_run(record: dict[str, Recorder], checkpoint: Path) -> None:
    """Else the records would have holes, or be of something nobody asked for."""
    kept(checkpoint)
    with pytest.raises(ValueError, match=r"is of another run .*record"):
        go(checkpoint, record=record)


def decaying(step: int) -> float:
    return 0.05 / (1 + step)


def decaying_otherwise_at_the_end(step: int) -> float:
    return 0.05 / (1 + step) * (1 + 1e-12 * (step == 7))


def test_another_schedule_is_another_run_and_the_same_values_are_not(checkpoint: Path) -> None:
    kept(checkpoint, lr=decaying)
    with pytest.raises(
        ValueError, match=r"is of another run \(lr a schedule from .* there, a schedule from .* now\)"
    ):
        go(checkpoint, lr=decaying_otherwise_at_the_end)
    assert not go(checkpoint, lr=lambda step: [0.05 / (1 + step) for step in range(8)][step]).diverged


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


class Shifted(torch.nn.Module):
    """Adds a tensor that is not trained, to one output."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([shift, 0.0, 0.0]))

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs + self.shift


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")


@pytest.mark.parametrize("replicas", [None, 2])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_seed": 2}, r"\(risk EmpiricalRisk of N = 12, D = 32, \w+ there, .* \w+ now\)"),
        ({"scale": 1.0 + 1e-9}, r"\(risk .* there, .* now\)"),
        ({"labels": 1}, r"\(risk .* there, .* now\)"),
        ({"shift": 1e-9}, r"\(risk .* there, .* now\)"),
        ({"activation": torch.nn.ReLU}, r"\((loss .* there, .* now|risk .* there, .* now)\)"),
        ({"loss": smoothed}, r"\((loss .* there, .* now|risk .* there, .* now)\)"),
    ],
    ids=["data", "data by a digit", "one label", "a frozen tensor", "another model of as many", "another loss"],
)
def test_another_risk_is_another_run(
    changes: dict[str, Any], message: str, replicas: int | None, checkpoint: Path
) -> None:
    start = 1e-3 * normal(network().dimension, seed=4)
    options = {"theta": start, "dynamics": ns.SGD(3), "replicas": replicas}
    kept(checkpoint, risk=network(), **options)
    with pytest.raises(ValueError, match=f"is of another run {message}: remove it to start afresh"):
        go(checkpoint, risk=network(**changes), **options)
    found = outcome(go(checkpoint, risk=network(), **options))
    assert found == outcome(go(checkpoint, risk=network(), **options)), "the same everything is accepted"


class Scaled(torch.nn.Tanh):
    """Its constant is no tensor, so that nothing but its values tells it from another."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.scale * inputs)


@pytest.mark.parametrize("replicas", [None, 2])
def test_a_model_that_only_its_losses_tell_from_another_is_another_run(
    replicas: int | None, checkpoint: Path
) -> None:
    """Weights are so small that both have the loss of chance at the start, to eight digits; not so nearby."""
    first, second = (network(activation=functools.partial(Scaled, scale)) for scale in (1.0, 1.5))
    assert fingerprint(first) == fingerprint(second)
    start = 1e-4 * normal(first.dimension, seed=4)
    assert_close(first.loss(start), second.loss(start), rtol=1e-6, atol=0)
    options = {"theta": start, "dynamics": ns.SGD(3), "replicas": replicas}
    kept(checkpoint, risk=first, **options)
    with pytest.raises(ValueError, match=r"is of another run \(loss near the start [\d.]+ there, [\d.]+ now\)"):
        go(checkpoint, risk=second, **options)
    assert not go(checkpoint, risk=first, **options).diverged.any()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_another_number_of_threads_is_the_same_run(threads: int, checkpoint: Path) -> None:
    """The sums of a large batch round otherwise."""
    risk = larger_risk(torch.float32, 18, 5000)
    before = torch.get_num_threads()
    kept(checkpoint, risk=risk, theta=risk.parameters(), dynamics=ns.SGD(3))
    torch.set_num_threads(threads)
    try:
        assert not go(checkpoint, risk=risk, theta=risk.parameters(), dynamics=ns.SGD(3)).diverged
    finally:
        torch.set_num_threads(before)


def test_a_closed_form_that_is_another_function_of_the_same_numbers_is_another_run(checkpoint: Path) -> None:
    def bowl(width: float) -> EmpiricalRisk:
        return EmpiricalRisk.from_losses(lambda w: width * w.square(), torch.ones(3, dtype=F64))

    kept(checkpoint, risk=bowl(1.0), dynamics=ns.GD())
    with pytest.raises(
        ValueError, match=r"is of another run \(loss at the start .* there, .* now; loss near the start"
    ):
        go(checkpoint, risk=bowl(1.001), dynamics=ns.GD())
    assert not go(checkpoint, risk=bowl(1.0 + 1e-7), dynamics=ns.GD()).diverged, "as another machine would round"


def test_losses_that_cancel_or_are_not_finite_do_not_stand_in_the_way(checkpoint: Path) -> None:
    """Their mean is rounding error, or no number at all: neither tells of another run."""
    slopes = torch.cat([normal(6, 3, seed=1), -normal(6, 3, seed=1)])
    for number, losses in enumerate(
        (lambda w: slopes @ w, lambda w: (slopes @ w).log(), lambda w: (slopes @ w).abs() * torch.inf)
    ):
        place = checkpoint.with_stem(str(number))
        risk = EmpiricalRisk.from_losses(losses, torch.ones(3, dtype=F64))
        near = losses_near(risk, torch.ones(3, dtype=F64))
        write_bundle(place, {"near": near}, {})
        assert differing_losses(read_bundle(place).tensors["near"], near * (1 + 1e-9)) == []
        nudged = near.clone()
        nudged[:, 1] *= 1.01
        assert bool(differing_losses(near, nudged)) == bool(torch.isfinite(near[:, 1]).any())


def test_a_closed_form_without_a_value_nearby_can_be_kept(checkpoint: Path) -> None:
    def losses(theta: Tensor) -> Tensor:
        if not bool((theta - 1.0).abs().max() < 0.01):
            raise ValueError("outside the domain")
        return theta.square()

    def risk() -> EmpiricalRisk:
        return EmpiricalRisk.from_losses(losses, torch.ones(3, dtype=F64))

    options = {"dynamics": ns.GD(), "theta": torch.ones(3, dtype=F64), "lr": 1e-4}
    kept(checkpoint, risk=risk(), **options)
    assert not go(checkpoint, risk=risk(), **options).diverged


def scaled_loss(factor: float) -> Recorder:
    return lambda risk, theta: factor * recorders.loss(risk, theta)


def other_loss(factor: float) -> Recorder:
    return lambda risk, theta: factor + recorders.loss(risk, theta)


@pytest.mark.parametrize(
    "other",
    [
        other_loss(2.0),
        scaled_loss(3.0),
        recorders.on(bowl_risk(), recorders.loss),
        recorders.sharpness(0.1),
        recorders.at_steps(scaled_loss(2.0), range(0, 9, 2)),
    ],
    ids=["other code", "another constant", "of another risk", "another kind", "at those steps by itself"],
)
def test_another_recorder_of_the_same_name_is_another_run(other: Recorder, checkpoint: Path) -> None:
    kept(checkpoint, record={"watched": scaled_loss(2.0)})
    with pytest.raises(ValueError, match=r"is of another run \(.*(recorders|records) "):
        go(checkpoint, record={"watched": other})
    assert not go(checkpoint, record={"watched": scaled_loss(2.0)}).diverged


def test_recorders_are_told_apart_by_what_they_hold() -> None:
    table = {"a": 1}
    alike = [
        (recorders.sharpness(0.1), recorders.sharpness(0.1)),
        (recorders.on(bowl_risk(), recorders.accuracy), recorders.on(bowl_risk(), recorders.accuracy)),
        (functools.partial(wobble, factor=table), functools.partial(wobble, factor={"a": 1})),
        (recorders.at_steps(recorders.loss, [1]), recorders.at_steps(recorders.loss, [2])),  # told by the plan
    ]
    unlike = [
        (recorders.sharpness(0.1), recorders.sharpness(0.2)),
        (recorders.sharpness(0.1, seed=1), recorders.sharpness(0.1)),
        (recorders.on(network(), recorders.loss), recorders.on(network(labels=2), recorders.loss)),
        (functools.partial(wobble, factor=table), functools.partial(wobble, factor={"a": 2})),
        (recorders.loss, recorders.accuracy),
        (DIGITS.make, dataclasses.replace(DIGITS, steps=7).make),
        ({torch.ones(2)}, {torch.zeros(2)}),
    ]
    assert all(described(one) == described(other) for one, other in alike)
    assert all(described(one) != described(other) for one, other in unlike)


def test_a_recorder_that_holds_itself_is_described() -> None:
    def again(risk: EmpiricalRisk, theta: Tensor) -> Any:
        return again

    assert "…" in described(again)


def test_bytecode_of_another_python_is_not_compared(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(checkpoint, record={"watched": scaled_loss(2.0)})
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    assert not go(checkpoint, record={"watched": scaled_loss(2.0)}).diverged


def test_a_checkpoint_from_before_risks_were_told_apart_is_not_trusted(checkpoint: Path) -> None:
    kept(checkpoint)
    bundle = read_bundle(checkpoint)
    earlier = {key: value for key, value in bundle.notes["identity"].items() if key != "risk"}
    tensors = {key: tensor for key, tensor in bundle.tensors.items() if key != "losses"}
    write_bundle(checkpoint, tensors, {**bundle.notes, "identity": earlier})
    with pytest.raises(ValueError, match=r"is of another run \(risk None there, "):
        go(checkpoint)


def test_a_damaged_checkpoint_is_named_and_kept(checkpoint: Path) -> None:
    kept(checkpoint)
    whole = checkpoint.read_bytes()
    chance = random.Random(0)
    for _ in range(20):
        position = chance.randrange(len(whole))
        length = chance.randrange(len(whole))
        flipped = whole[:position] + bytes([whole[position] ^ 0x80]) + whole[position + 1 :]
        for damaged in (flipped, whole[:length], b""):
            checkpoint.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=r"cannot be read .* it is damaged") as caught:
                go(checkpoint)
            assert str(checkpoint) in str(caught.value)
            assert checkpoint.read_bytes() == damaged


@pytest.mark.parametrize(
    ("tensors", "notes"),
    [
        ({"theta": torch.ones(3, dtype=F64)}, {}),
        ({"theta": torch.ones(3, dtype=F64)}, {"epoch": 3, "rows": []}),
        ({"theta": torch.ones(3, dtype=F64)}, {"rows": [], "notes": {}, "order": ["theta"], "seconds": 1.0}),
    ],
    ids=["of a run", "of another loop", "a finished task"],
)
def test_a_whole_file_that_is_no_checkpoint_is_named(
    tensors: dict[str, Tensor], notes: dict[str, Any], checkpoint: Path
) -> None:
    write_bundle(checkpoint, tensors, notes)
    with pytest.raises(ValueError, match=r"kept\.safetensors"):
        go(checkpoint)
    assert checkpoint.exists()


# ---------------------------------------------------------------------- experiments: stopped in this process

Experiment = Callable[..., Run]
TOY = Toy2DConfig(replicas=3, control_replicas=2, points=10, steps=12, seed=3)
LAYER = OneHiddenLayerConfig(
    seeds=1, widths=(4, 6), points=30, epochs=3, steps_per_epoch=2, decay_from=2, gd_lr=0.05, seed=2
)
DIGITS = DigitsConfig(
    seeds=2,
    clean=40,
    corrupted=8,
    gd_steps=12,
    landmarks=(0.5, 1.0),
    steps=6,
    k=5,
    batch_size=5,
    refresh=4,
    curvature_refresh=4,
    sharpness_draws=3,
    rtol=0.5,
    rtol_along=0.5,
    dynamics=("gd", "gld-leading", "gld-constant"),
    seed=2,
)
EXPERIMENTS: dict[str, tuple[Experiment, Any, int]] = {
    "toy-2d": (run_toy_2d, TOY, 18),
    "one-hidden-layer": (run_one_hidden_layer, LAYER, 4),
    "digits": (run_digits, DIGITS, 10),
}
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)
tolerant = pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")
VARYING = ("run.json", "timing.json")


def perform(experiment: str, out: Path, *, resume: bool = False, jobs: int = 1, **changes: Any) -> Run:
    work, config, _ = EXPERIMENTS[experiment]
    config = dataclasses.replace(config, **changes)
    return work(config, out, jobs=jobs, resume=resume, progress=False)


def contents(path: Path, *, without: Sequence[str] = VARYING) -> dict[str, bytes]:
    """The bytes of every file, but of those that tell the time."""
    found = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if not file.is_dir()}
    return {name: file.read_bytes() for name, file in found.items() if name not in without}


def assert_equal_runs(found: Path, expected: dict[str, bytes], why: object = "") -> None:
    present = contents(found)
    assert present.keys() == expected.keys(), why
    assert [name for name in expected if present[name] != expected[name]] == [], why
    assert not (found / "tasks").exists(), why


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of an experiment that nothing came between."""
    memo: dict[str, Path] = {}

    def get(experiment: str) -> Path:
        if experiment not in memo:
            memo[experiment] = perform(experiment, tmp_path_factory.mktemp("whole") / "run").path
        return memo[experiment]

    return get


@tolerant
@every_experiment
def test_an_experiment_leaves_the_same_bytes_each_time(
    experiment: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = contents(whole(experiment))
    assert {"metrics.parquet", "summary.json"} < expected.keys() | {"checkpoints"}
    assert_equal_runs(perform(experiment, tmp_path / "again").path, expected)


@tolerant
@pytest.mark.parametrize("named", [False, True], ids=["before it has its name", "after"])
@pytest.mark.parametrize(
    "experiment", ["toy-2d", "one-hidden-layer", pytest.param("digits", marks=pytest.mark.slow)]
)
def test_stopped_at_any_file_it_goes_on_to_the_same_bytes(
    experiment: str,
    named: bool,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = contents(whole(experiment))
    for number in itertools.count(step=3 if experiment == "digits" else 1):
        out = tmp_path / str(number)
        if not stopped_at_write(experiment, out, number, named, monkeypatch):
            break
        begun = (out / "run.json").read_bytes() if (out / "run.json").exists() else None
        assert_equal_runs(perform(experiment, out, resume=True).path, expected, f"stopped at file {number}")
        assert begun in (None, (out / "run.json").read_bytes()), "who began it when stays as it was"
        shutil.rmtree(out)
    assert number > EXPERIMENTS[experiment][2] + 3, "a file for each task, and those of the run"


def stopped_at_write(
    experiment: str, out: Path, number: int, named: bool, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False
) -> bool:
    """Whether there was a file of that number to stop at; 0 is the first."""
    count = itertools.count()
    replace = Path.replace

    def give_name(self: Path, target: Path) -> Path:
        stop = next(count) == number
        if stop and not named:
            raise Stop
        moved = replace(self, target)
        if stop:
            raise Stop
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", give_name)
        try:
            perform(experiment, out, resume=resume)
        except Stop:
            return True
    return False


@tolerant
@every_experiment
def test_stopped_again_and_again_it_ends_all_the_same(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(1)
    stops = 0
    while stopped_at_write(
        experiment, tmp_path / "run", chance.randrange(7), chance.random() < 0.5, monkeypatch, resume=stops > 0
    ):
        stops += 1
    assert stops >= 2
    assert_equal_runs(tmp_path / "run", contents(whole(experiment)))


def stop_within(patch: pytest.MonkeyPatch, experiment: str, task: int, step: int) -> None:
    """Let the experiment's task of that number stop after so many steps (epochs), all kept."""
    count = itertools.count()
    if experiment == "one-hidden-layer":
        figures = one_hidden_layer._figures

        def measure(*arguments: Any) -> dict[str, float]:
            if next(count) == task * LAYER.epochs + step:
                raise Stop
            return figures(*arguments)

        patch.setattr(one_hidden_layer, "_figures", measure)
        return

    def run(*arguments: Any, **options: Any) -> Trajectory:
        def watch(done: int) -> None:
            if done == step:
                raise Stop

        own = {"checkpoint_seconds": 0, "on_step": watch} if next(count) == task else {}
        return simulate(*arguments, **options, **own)

    patch.setattr(toy_2d if experiment == "toy-2d" else escape, "simulate", run)


WITHIN = [
    *itertools.product(["toy-2d"], [0, 3, 10, 17], [2, 12]),
    *itertools.product(["one-hidden-layer"], range(4), [0, 1, 2]),
    *[("digits", 0, 3), ("digits", 3, 6), ("digits", 5, 3)],
    *[
        pytest.param("digits", task, step, marks=pytest.mark.slow)
        for task, step in [(1, 11), (2, 2), (4, 5), (6, 6), (7, 3)]
    ],
]


@tolerant
@pytest.mark.parametrize(("experiment", "task", "step"), WITHIN)
def test_stopped_within_a_task_it_goes_on_there_to_the_same_bytes(
    experiment: str,
    task: int,
    step: int,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, task, step)
        with pytest.raises(Stop):
            perform(experiment, out)
    assert len(list((out / "tasks").glob("*.done.safetensors"))) == task
    partial = len(list((out / "tasks").glob("*.partial.safetensors")))
    assert partial == (step > 0)
    done = {file: file.stat().st_mtime_ns for file in (out / "tasks").glob("*.done.safetensors")}
    # once more, in a task after that one: what was done is left alone
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, 1, 2)
        stopped_again = False
        try:
            perform(experiment, out, resume=True)
        except Stop:
            stopped_again = True
    if stopped_again:
        assert {file: file.stat().st_mtime_ns for file in done} == done
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@tolerant
@pytest.mark.parametrize("experiment", ["toy-2d", "digits"])
def test_a_dynamics_that_breaks_loses_no_finished_task(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("a bug in leading noise")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ns.GLDLeading, "noise", broken)
        with pytest.raises(RuntimeError, match="a bug in leading noise"):
            perform(experiment, out)
    assert not Run.open(out).complete
    assert list((out / "tasks").glob("*.done.safetensors"))
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@tolerant
@every_experiment
def test_a_run_stopped_while_tidying_up_is_complete_and_is_tidied(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(folder: Path, *_arguments: Any, **_options: Any) -> None:
        next(Path(folder).iterdir()).unlink()
        raise Stop

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tasks.shutil, "rmtree", stop)
        with pytest.raises(Stop):
            perform(experiment, out)
    assert Run.open(out).complete
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@tolerant
@every_experiment
def test_resuming_a_complete_run_changes_nothing(experiment: str, whole: Callable[[str], Path]) -> None:
    out = whole(experiment)
    before = contents(out, without=()), {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert perform(experiment, out, resume=True).complete
    assert (contents(out, without=()), {file: file.stat().st_mtime_ns for file in out.rglob("*")}) == before


@tolerant
@pytest.mark.parametrize(
    ("experiment", "place"),
    [("toy-2d", "nowhere"), ("toy-2d", "empty"), ("one-hidden-layer", "nowhere"), ("digits", "empty")],
)
def test_resuming_where_there_is_no_run_starts_one(
    experiment: str, place: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert_equal_runs(perform(experiment, tmp_path / place, resume=True).path, contents(whole(experiment)))


@tolerant
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        ("toy-2d", {"seed": 4}, "seed = 3 there, 4 now"),
        ("toy-2d", {"steps": 13, "lr": 0.004}, r"lr = 0\.005 there, 0\.004 now, steps = 12 there, 13 now"),
        ("toy-2d", {"preset": "as-published"}, "preset = corrected there, as-published now"),
        ("toy-2d", {"control_replicas": 3}, "control_replicas = 2 there, 3 now"),
        ("one-hidden-layer", {"epochs": 4}, "epochs = 3 there, 4 now"),
        ("one-hidden-layer", {"widths": (6, 4)}, r"widths = \[4, 6\] there, \[6, 4\] now"),
        ("digits", {"gd_steps": 13}, "gd_steps = 12 there, 13 now"),
        ("digits", {"seeds": 3}, "seeds = 2 there, 3 now"),
        ("digits", {"rho": 0.1}, r"rho = None there, 0\.1 now"),
        ("digits", {"dynamics": ("gd",)}, r"dynamics = \['gd', .*\] there, \['gd'\] now"),
    ],
)
def test_other_constants_are_refused_by_name(
    experiment: str,
    changes: dict[str, Any],
    message: str,
    complete: bool,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    if complete:
        shutil.copytree(whole(experiment), out)
    else:
        assert stopped_at_write(experiment, out, 3, True, monkeypatch)
    before = contents(out, without=())
    with pytest.raises(ValueError, match=f"cannot be continued with other constants: {message}") as caught:
        perform(experiment, out, resume=True, **changes)
    assert "\n" not in str(caught.value)
    assert contents(out, without=()) == before


def test_another_experiments_run_is_refused(whole: Callable[[str], Path]) -> None:
    out = whole("toy-2d")
    before = contents(out, without=())
    with pytest.raises(ValueError, match="is a run of 'toy-2d', not of 'one-hidden-layer'"):
        perform("one-hidden-layer", out, resume=True)
    assert contents(out, without=()) == before


def test_a_run_is_not_begun_again_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    assert stopped_at_write("toy-2d", out, 3, True, monkeypatch)
    before = contents(out, without=())
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        perform("toy-2d", out)
    assert contents(out, without=()) == before


@tolerant
@pytest.mark.parametrize("kind", ["done", "partial"])
@pytest.mark.parametrize(
    ("experiment", "damage"),
    [
        *itertools.product(["toy-2d"], ["flipped", "cut", "empty", "of another program"]),
        ("one-hidden-layer", "flipped"),
        ("digits", "flipped"),
    ],
)
def test_a_damaged_task_is_named_and_done_again_once_removed(
    experiment: str,
    kind: str,
    damage: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, 2, 2)
        with pytest.raises(Stop):
            perform(experiment, out)
    victim = min((out / "tasks").glob(f"*.{kind}.safetensors"))
    content = victim.read_bytes()
    middle = len(content) // 2
    victim.write_bytes(
        {
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut": content[:middle],
            "empty": b"",
            "of another program": b"PK" + content,
        }[damage]
    )
    kept = {name: content for name, content in contents(out, without=()).items() if ".done." in name}
    with pytest.raises(CorruptFileError) as caught:
        perform(experiment, out, resume=True)
    assert str(caught.value).startswith(f"{victim} cannot be read (")
    assert "Remove it, and --resume does that part again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kept.items() <= contents(out, without=()).items(), "what is whole stays"
    assert not Run.open(out).complete
    victim.unlink()
    assert_equal_runs(perform(experiment, out, resume=True).path, contents(whole(experiment)))


@pytest.mark.slow
@tolerant
@every_experiment
def test_the_number_of_processes_does_not_matter(
    experiment: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = contents(whole(experiment))
    assert_equal_runs(perform(experiment, tmp_path / "two", jobs=2).path, expected)
    with monkeypatch.context() as patch:
        stop_within(patch, experiment, 2, 2)
        with pytest.raises(Stop):
            perform(experiment, tmp_path / "changed")
    assert_equal_runs(perform(experiment, tmp_path / "changed", jobs=2, resume=True).path, expected)


# ---------------------------------------------------------------------- the program: no room, no memory

SMALLEST = ["reproduce", "toy-2d", "--replicas", "2", "--control-replicas", "0", "--steps", "3", "--jobs", "1"]


def without_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when that file is to be written."""
    replace = Path.replace

    def give_name(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", give_name)


@pytest.mark.parametrize(
    "name",
    ["run.json", "published-gld-leading-0.done.safetensors", "metrics.parquet", "summary.json", "report.html"],
)
@pytest.mark.parametrize("place", [[], ["--out", "here"]], ids=["by default", "in --out"])
def test_on_a_full_disk_the_program_says_so_in_a_line_and_can_be_resumed(
    name: str, place: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        without_room(name, patch)
        full = CliRunner().invoke(app, [*SMALLEST, *place])
    assert full.exit_code == 1
    [line] = full.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"/{name}: what was written before is intact; make room, then continue with --resume" in line
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]
    resumed = CliRunner().invoke(app, [*SMALLEST, *place, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    [run] = (tmp_path / "runs").iterdir() if not place else [tmp_path / "here"]
    assert Run.open(run).complete
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("kind", ["directory", "file", "earlier run"])
def test_what_merely_sounds_like_a_run_is_not_resumed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.mkdir()
    if kind == "directory":
        (runs / "toy-2d-thesis").mkdir()
        (runs / "toy-2d-thesis" / "mine.txt").touch()
    elif kind == "file":
        (runs / "toy-2d-table.csv").touch()
    else:
        assert CliRunner().invoke(app, SMALLEST).exit_code == 0
    before = contents(runs, without=())
    assert CliRunner().invoke(app, [*SMALLEST, "--resume"]).exit_code == 0
    after = contents(runs, without=())
    assert before.items() <= after.items()
    [summary] = [name for name in after.keys() - before.keys() if name.endswith("summary.json")]
    assert re.fullmatch(r"toy-2d-\d{8}-\d{6}(-\d+)?/summary\.json", summary)


def be_killed(*, checkpoint: Path) -> tasks.Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return tasks.Outcome()


def be_done(*, checkpoint: Path) -> tasks.Outcome:
    return tasks.Outcome([{"x": 1}])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_the_system_killed_is_told_in_a_line(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", experiment="toy", config={}, seed=0)
    both = [tasks.Task("first", be_done, ()), tasks.Task("second", be_killed, ())]
    tasks.perform(run, both[:1], jobs=2, title="", progress=False)
    with pytest.raises(RuntimeError, match=r"a worker process was killed.* continue with --resume") as caught:
        tasks.perform(run, both, jobs=2, title="", progress=False)
    assert "\n" not in str(caught.value)
    assert contents(run.path).keys() == {"tasks/first.done.safetensors"}


# ---------------------------------------------------------------------- the program: killed

KILLS = int(os.environ.get("NOISESCAPE_KILLS", "3"))
# a smaller network's worth of digits, and checkpoints more often than every ten seconds, so that kills find some;
# the processes of --jobs 2 start without the latter
PROGRAM = """
import functools
from noisescape import cli
from noisescape.simulation.loop import simulate
simulate.__kwdefaults__["checkpoint_seconds"] = 0.02
cli.DigitsConfig = functools.partial(
    cli.DigitsConfig, clean=80, corrupted=16, k=5, rtol=0.3, rtol_along=0.3, sharpness_draws=5, landmarks=(0.1, 0.6)
)
cli.app(prog_name="noisescape")
"""
COMMAND = [
    *("reproduce", "digits", "--seeds", "2", "--gd-steps", "150", "--steps", "30"),
    *("--dynamics", "gd,sgd,gld-diagonal,gld-leading,gld-hessian", "--quiet"),
]


def call(out: Path, *, jobs: int, resume: bool, seconds: float | None = None) -> bool:
    """Whether the program came to its end; it is killed after so many seconds, with all its processes."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", PROGRAM, *COMMAND, "--jobs", str(jobs), "--out", str(out)),
            *(["--resume"] if resume else []),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors
    assert told == f"report: {out / 'report.html'}\n"
    return True


def stage(out: Path) -> str:
    """How far a killed run had come; every file it left is whole."""
    for file in (*out.rglob("[!.]*.safetensors"), *out.rglob("[!.]*.json"), *out.rglob("[!.]*.parquet")):
        if file.suffix == ".safetensors":
            read_bundle(file)
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        else:
            Run(out).metrics()
    if not (out / "run.json").exists():
        return "starting"
    if (out / "report.html").exists():
        return "ending"
    if (out / "summary.json").exists():
        return "report"
    if (out / "checkpoints").exists():
        return "tables"
    names = [file.name for file in (out / "tasks").glob("[!.]*.safetensors")]
    phase = "escape" if sum(name.startswith("descent") and ".done." in name for name in names) == 2 else "descent"
    return f"{phase}, within tasks" if any(".partial." in name for name in names) else phase


RESULTS = ("metrics.parquet", "summary.json", "checkpoints")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs SIGKILL and process groups")
def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def results(out: Path) -> dict[str, bytes]:
        return {name: content for name, content in contents(out).items() if name.startswith(RESULTS)}

    took = {}
    for jobs in (1, 2):
        began = time.monotonic()
        assert call(tmp_path / f"whole-{jobs}", jobs=jobs, resume=False)
        took[jobs] = time.monotonic() - began
    expected, everything = results(tmp_path / "whole-1"), contents(tmp_path / "whole-1", without=()).keys()
    assert expected.keys() >= {"metrics.parquet", "summary.json", "checkpoints/minima.safetensors"}
    assert results(tmp_path / "whole-2") == expected
    chance = random.Random(20)
    stages: Counter[str] = Counter()
    same = runs = 0
    while stages.total() < KILLS:
        out, resume = tmp_path / f"killed-{runs}", False
        runs += 1
        while stages.total() < KILLS and (not resume or chance.random() < 0.4):
            jobs = chance.choice([1, 2])
            if call(out, jobs=jobs, resume=resume, seconds=chance.uniform(0, took[jobs])):
                break
            stages[stage(out)] += 1
            resume = True
        assert call(out, jobs=chance.choice([1, 2]), resume=True)
        found = results(out)
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        left = contents(out, without=()).keys() ^ everything
        same += not differing and not left
        if "NOISESCAPE_KILLS" in os.environ:
            with capsys.disabled():
                print(f"\n{runs} runs, {stages.total()} kills, {same} the same: {dict(stages)}", *differing, *left)
    assert same == runs
