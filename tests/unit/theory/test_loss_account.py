"""Terms of the loss budget added up along a run, against what the loss did and what it does in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import noisescape as ns
from cases import F64, normal
from noisescape.simulation import Record, Trajectory, recorders
from noisescape.theory import expected_excess_loss, loss_account
from simulations import COVARIANCE, GRADIENTS, HESSIAN, START, bowl, run

PARTS = ("gradient/squared_norm", "gradient/curvature", "indicator/value", "indicator/stderr")


def watched(size: int, **options: bool) -> dict[str, recorders.Recorder]:
    return {
        "loss": recorders.loss,
        "gradient": recorders.gradient,
        "indicator": recorders.indicator(size, **options),
    }


def test_without_noise_a_quadratic_leaves_nothing_over_at_any_step() -> None:
    """A batch of all samples, drawn without replacement: the full gradient."""
    count = len(GRADIENTS)
    sgd = ns.SGD(count, replacement=False)
    found = loss_account(
        run(bowl(), sgd, START, lr=0.7, steps=12, every=1, record=watched(count, replacement=False))
    )
    assert found.steps.tolist() == [*range(13)]
    assert_close(found.remainder, torch.zeros(13, dtype=F64), rtol=0, atol=1e-12)
    assert (found.noise == 0).all()
    assert (found.actual[1:] < -0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.05, 0.9])
def test_from_the_minimum_of_a_quadratic_the_account_is_the_closed_form(lr: float) -> None:
    """E Σ predicted = E L_k − L_0, over replicas, within its own standard error; Tr(HΣ) is the same everywhere."""
    size, steps, replicas = 2, 15, 120
    sgd = ns.SGD(size)
    trajectory = run(
        bowl(), sgd, torch.zeros(3, dtype=F64), lr=lr, steps=steps, every=1, replicas=replicas, record=watched(size)
    )
    found = loss_account(trajectory)
    assert found.predicted.shape == (steps + 1, replicas)
    noise = lr**2 / 2 * float((HESSIAN @ COVARIANCE).trace()) / size
    assert_close(found.noise[:, 0], noise * torch.arange(steps + 1, dtype=F64), rtol=1e-9, atol=1e-12)
    for step in (1, 4, steps):
        exact = float(expected_excess_loss(HESSIAN, COVARIANCE / size, lr=lr, steps=step))
        for values in (found.predicted[step], found.actual[step]):
            stderr = max(float(values.std() / replicas**0.5), 1e-12)
            assert abs(float(values.mean()) - exact) < 4 * stderr
        over = found.remainder[step]
        assert abs(float(over.mean())) < 4 * float(over.std() / replicas**0.5)
    assert float(found.predicted[steps].mean()) > 3 * float(found.predicted[steps].std() / replicas**0.5)


def by_hand(lr: object, losses: dict[int, float], parts: list[dict[int, float]]) -> Trajectory:
    """A trajectory with made-up records: of the loss and, in the order of PARTS, of what the terms are made of."""

    def record(values: dict[int, float]) -> Record:
        return Record(torch.tensor([*values]), torch.tensor([*values.values()], dtype=F64))

    records = {name: record(values) for name, values in zip(PARTS, parts, strict=True)}
    records["loss"] = record(losses)
    theta = torch.zeros(2, dtype=F64)
    return Trajectory(ns.SGD(1), lr, 11, 0, records, theta, torch.tensor(-1), 11)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [False, True])
def test_between_measured_steps_what_is_linear_is_added_up_exactly(schedule: bool) -> None:
    """Each at steps of its own, against sums over all steps; the account covers what all cover: 2 to 10."""

    def rate(step: int) -> float:
        return 0.1 / (1 + step) if schedule else 0.3

    def line(slope: float, *steps: int) -> dict[int, float]:
        return {step: 3.0 + slope * step for step in steps}

    parts = [line(2.0, *range(1, 12)), line(5.0, 0, 7, 11), line(-0.1, 2, 5, 10), line(0.3, 2, 5, 10)]
    losses = {0: 9.0, 2: 4.0, 5: 3.0, 6: 5.0, 10: 1.0, 11: 7.0}
    found = loss_account(by_hand(rate if schedule else 0.3, losses, parts))
    assert found.steps.tolist() == [2, 5, 6, 10]
    for row, step in enumerate(found.steps.tolist()):
        for part, slope in ((found.curvature, 5.0), (found.noise, -0.1), (found.noise_stderr, 0.3)):
            expected = sum(rate(t) ** 2 / 2 * (3.0 + slope * t) for t in range(2, step))
            assert float(part[row]) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        descent = sum(-rate(t) * (3.0 + 2.0 * t) for t in range(2, step))
        assert float(found.descent[row]) == pytest.approx(descent, rel=1e-12, abs=1e-15)
    assert found.actual.tolist() == [0.0, -1.0, 1.0, -3.0]
    assert_close(found.remainder, found.actual - found.descent - found.curvature - found.noise)


def test_a_replica_that_diverges_has_no_account_from_there() -> None:
    starts = torch.stack([torch.zeros(3, dtype=F64), normal(3, seed=1)])
    trajectory = run(bowl(), ns.GD(), starts, lr=30.0, steps=12, every=3, record=watched(2))
    assert trajectory.diverged.tolist() == [False, True]
    found = loss_account(trajectory)
    assert torch.isfinite(found.predicted[:, 0]).all()
    assert math.isfinite(float(found.predicted[0, 1]))
    assert torch.isnan(found.predicted[-1, 1])


def test_an_account_asks_for_what_it_needs() -> None:
    def go(record: dict[str, recorders.Recorder]) -> Trajectory:
        return run(bowl(), ns.SGD(2), START, steps=4, every=2, record=record)

    every = watched(2)
    for name, missing in (
        ("gradient", "gradient/squared_norm"),
        ("indicator", "indicator/value"),
        ("loss", "loss"),
    ):
        with pytest.raises(ValueError, match=f"'{missing}' was not recorded; run simulate with record="):
            loss_account(go({key: kept for key, kept in every.items() if key != name}))
    late = recorders.at_steps(every["indicator"], [3, 4])
    with pytest.raises(ValueError, match="cover the steps 3 to 4 together, at fewer than two of which 'loss' was"):
        loss_account(go({**every, "indicator": late}))
    named = loss_account(
        go({"L": every["loss"], "g": every["gradient"], "i": every["indicator"]}),
        gradient="g",
        indicator="i",
        loss="L",
    )
    assert named.steps.tolist() == [0, 2, 4]
