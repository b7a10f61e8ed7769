"""Stopped at any step and continued, a run ends in the same bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import noisescape as ns
from cases import F64, Case, bowl_risk, normal
from noisescape.dynamics import Dynamics
from noisescape.experiments.protocols import toy_2d
from noisescape.experiments.protocols.toy_2d import RunningSums
from noisescape.experiments.published import PublishedHessian, PublishedLeading
from noisescape.risk import EmpiricalRisk
from noisescape.risk.closed_form import SampleLoss
from noisescape.simulation import recorders
from noisescape.simulation.loop import simulate
from noisescape.simulation.recorders import Recorder
from noisescape.theory.landscapes import toy_2d as toy_risk
from noisescape.theory.landscapes import toy_points
from resuming import ALL, ONE_ONLY, STEPS, WATCH, assert_resumes, larger_risk, outcome
from slowness import quick

SEVERAL = [name for name in ALL if name != ONE_ONLY]
RUNS = [*itertools.product(SEVERAL, [None, 1, 3]), (ONE_ONLY, None)]
LARGE = [
    ns.GLDLeading(4, k=5, refresh=4),
    ns.GLDHessian(4, k=6, refresh=4),
    ns.GLDTopEigenvector(4, refresh=4),
    ns.MatchedTrace(ns.GLDLeading(4, k=7, refresh=4), 0.3),
    PublishedLeading(4, k=5, refresh=4),
    PublishedHessian(4, k=5, refresh=4),
]


@pytest.mark.parametrize(
    ("name", "replicas"),
    quick(RUNS[1::9], RUNS),
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


@pytest.mark.parametrize("dtype", quick([torch.float32], [F64]))
@pytest.mark.parametrize(
    ("name", "replicas"),
    quick([(name, None) for name in [*ALL][1::2]], [run for run in RUNS if run[1] != 1]),
)
def test_a_network_goes_on_to_the_same_bits(
    name: str, replicas: int | None, dtype: torch.dtype, mlp: Case, checkpoint: Path
) -> None:
    start = mlp.theta.to(dtype)
    if replicas:
        start = start + 0.1 * normal(replicas, len(start), seed=9, dtype=dtype)
    assert_resumes(checkpoint, mlp.risk(dtype), ALL[name], start, stops=((2,), (6, 9)))


@pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")
@pytest.mark.parametrize(
    ("hidden", "count"),
    quick([(18, 40)], [(18, 300), (8, 40), (8, 200)]),
)
@pytest.mark.parametrize(
    ("dynamics", "replicas"),
    quick(
        [(LARGE[0], None), (LARGE[2], None), (LARGE[4], 2)],
        [(made, r) for made in LARGE for r in (None, 2) if r is None or not isinstance(made, PublishedHessian)],
    ),
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


@pytest.mark.parametrize(
    ("name", "start"),
    quick(
        [("sgd", "transposed"), ("gld-hessian", "expanded"), ("sgd", "one coordinate after the other")],
        itertools.product(
            ["sgd", "gld-hessian", "gd", "gld-leading", "gld-full"],
            ["transposed", "expanded", "one coordinate after the other"],
        ),
    ),
)
def test_a_strided_start_goes_on_to_the_same_bits(name: str, start: str, mlp: Case, checkpoint: Path) -> None:
    made = {
        "transposed": mlp.theta[:, None].expand(-1, 3).clone().T,
        "expanded": mlp.theta.expand(3, -1),
        "one coordinate after the other": torch.stack([mlp.theta, mlp.theta])[0],
    }
    assert_resumes(checkpoint, mlp.risk(), ALL[name], made[start], stops=((2,), (5,)))


@pytest.mark.parametrize(
    ("name", "kind"),
    quick(
        [("gd", SampleLoss), ("gld-constant", SampleLoss), ("gld-leading", RunningSums)],
        itertools.product(toy_2d.toy_dynamics(400.0), [SampleLoss, RunningSums]),
    ),
)
def test_the_toys_replicas_go_on_to_the_same_bits(name: str, kind: type[SampleLoss], checkpoint: Path) -> None:
    points = toy_points(5, 20, torch.Generator().manual_seed(0), torch.float32)
    record = {name: recorder for name, recorder in WATCH.items() if name != "sharpness"}
    risk, start = toy_risk(points, kind=kind), torch.ones(5, 2)
    assert_resumes(checkpoint, risk, toy_2d.toy_dynamics(400.0)[name], start, lr=0.005, record=record)


@pytest.mark.parametrize("name", quick(SEVERAL[::5], SEVERAL))
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
