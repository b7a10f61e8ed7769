"""Divergence is an outcome, not a crash."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import F64, Case, normal
from noisescape.simulation import recorders
from noisescape.simulation.divergence import RUNAWAY
from noisescape.theory.landscapes import quadratic
from simulations import ALL, START, bowl, run
from slowness import quick


def power(exponent: int, dtype: torch.dtype) -> ns.EmpiricalRisk:
    """Σ (θ − p)^m/m: from far out every step overshoots.

    With m = 8 in float32 it lands where losses and gradients are finite and squares of gradients are not.
    """
    points = (0.3 * normal(8, 2, seed=3)).to(dtype)

    def loss(theta: Tensor, point: Tensor) -> Tensor:
        return ((theta - point) ** exponent).sum(-1) / exponent

    return ns.EmpiricalRisk.from_sample_loss(loss, points, torch.zeros(2, dtype=dtype))


def precipice(dtype: torch.dtype) -> ns.EmpiricalRisk:
    """Σ exp((θ − p)²): one overshoot lands, at a moderate θ, where the loss is infinite."""
    points = (0.1 * normal(8, 2, seed=3)).to(dtype)

    def loss(theta: Tensor, point: Tensor) -> Tensor:
        return torch.exp((theta - point) ** 2).sum(-1)

    return ns.EmpiricalRisk.from_sample_loss(loss, points, torch.zeros(2, dtype=dtype))


LANDSCAPES = {
    "quartic": (power(4, F64), 30.0),
    "overflowing squares": (power(8, torch.float32), 5.5),
    "precipice": (precipice(F64), 2.6),
}


RUNS = [*itertools.product(ALL, LANDSCAPES)]
OF_MODELS = [*itertools.product(ALL, [None, 2])]
WATCH = {
    "loss": recorders.loss,
    "indicator": recorders.indicator(3),
    "sharpness": recorders.sharpness(1e-2, draws=3),
}


def test_divergence_ends_a_single_run_with_a_nan_at_its_step() -> None:
    """Every step doubles |θ|, so the bound is passed at the first 2^k over it."""
    line = quadratic(torch.eye(1, dtype=F64), torch.zeros(2, 1, dtype=F64))
    seen: list[int] = []
    found = run(line, ns.GD(), torch.ones(1, dtype=F64), lr=3.0, steps=1000, every=10, on_step=seen.append)
    passed = math.ceil(math.log2(RUNAWAY))
    assert found.diverged.shape == ()
    assert bool(found.diverged)
    assert int(found.diverged_at) == passed == 27
    assert torch.isnan(found.theta).all()
    record = found.records["loss"]
    assert record.steps.tolist() == [0, 10, 20, passed]
    assert_close(record.values[:-1], 0.5 * torch.tensor([1.0, 4.0**10, 4.0**20], dtype=F64))
    assert math.isnan(record.values[-1])
    assert seen == [*range(1, passed)]


def test_a_run_within_bounds_is_not_called_diverged() -> None:
    found = run(bowl(), ns.GD(), torch.stack([START, -START]))
    assert found.diverged_at.tolist() == [-1, -1]
    assert found.diverged.tolist() == [False, False]


@pytest.mark.parametrize("watch", [{}, WATCH], ids=["unwatched", "watched"])
@pytest.mark.parametrize(("name", "landscape"), quick(RUNS[::4], RUNS))
def test_a_diverging_run_is_an_outcome_not_a_crash(
    name: str, landscape: str, watch: dict[str, recorders.Recorder]
) -> None:
    risk, far = LANDSCAPES[landscape]
    start = torch.full((2,), far, dtype=risk.dtype)
    found = run(risk, ALL[name], start, steps=30, every=1, record=watch)
    assert bool(found.diverged)
    assert torch.isnan(found.theta).all()
    for record in found.records.values():
        assert int(record.steps[-1]) == int(found.diverged_at) < 30
        assert math.isnan(record.values[-1])


@pytest.mark.parametrize("watch", [{}, WATCH], ids=["unwatched", "watched"])
@pytest.mark.parametrize(("name", "landscape"), quick(RUNS[::4], RUNS))
def test_the_other_replicas_go_on_when_one_diverges(
    name: str, landscape: str, watch: dict[str, recorders.Recorder]
) -> None:
    risk, far = LANDSCAPES[landscape]
    starts = torch.tensor([[0.1, -0.1], [far, far], [0.0, 0.2]], dtype=risk.dtype)
    found = run(risk, ALL[name], starts, steps=12, every=1, record=watch)
    assert found.diverged.tolist() == [False, True, False]
    assert torch.isnan(found.theta[1]).all()
    assert torch.isfinite(found.theta[[0, 2]]).all()
    when = int(found.diverged_at[1])
    assert 1 <= when < 12
    for record in found.records.values():
        assert record.steps.tolist() == [*range(13)]
        assert torch.isfinite(record.values[:, [0, 2]]).all()
        assert torch.isnan(record.values[when:, 1]).all()


@pytest.mark.parametrize(("name", "replicas"), quick(OF_MODELS[::3], OF_MODELS))
def test_a_diverging_model_is_an_outcome_not_a_crash(name: str, replicas: int | None, mlp: Case) -> None:
    risk = ns.EmpiricalRisk(mlp.model(), torch.nn.functional.mse_loss, (mlp.inputs, normal(11, 3, seed=2)))
    found = run(risk, ALL[name], mlp.theta, lr=1e5, steps=60, replicas=replicas, record=WATCH, every=1)
    assert found.diverged.all()
    assert torch.isnan(found.theta).all()


@pytest.mark.parametrize("name", ["gld-hessian", "gld-top-eigenvector", "gld-leading"])
@pytest.mark.parametrize("replicas", [None, 2])
def test_a_larger_diverging_model_is_an_outcome_not_a_crash(name: str, replicas: int | None) -> None:
    """Over 128 parameters eigenvectors come from Lanczos, which has its own way to choke on overflow."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp((outputs - targets) ** 2)

    model = torch.nn.Linear(50, 3).double()
    torch.nn.init.constant_(model.weight, 0.01)
    risk = ns.EmpiricalRisk(model, loss, (normal(9, 50, seed=1), 0.1 * normal(9, 3, seed=2)))
    found = run(risk, ALL[name], risk.parameters(), lr=1e3, steps=9, replicas=replicas, record=WATCH, every=1)
    assert found.diverged.all()
    assert (found.diverged_at > 1).all(), "the noise was drawn where nothing was finite"


def test_an_error_that_is_no_divergence_is_raised() -> None:
    class Broken(ns.GD):
        def noisy_gradient(self, *_arguments: object) -> object:
            raise RuntimeError("a bug")

    for start in (START, START.expand(2, -1)):
        with pytest.raises(RuntimeError, match="a bug"):
            run(bowl(), Broken(), start)
