"""A step that stays on the device does what a step of the loop does. Graphs of it are tested in ``tests/gpu``."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from dynamics_cases import ALL, THETA, regression
from noisescape.simulation.captured import DeviceStep, captured_step
from simulations import bowl, run

MEMORYLESS = [name for name, dynamics in ALL.items() if dynamics.memoryless]


def taken(risk, dynamics, theta, rates, steps: int) -> DeviceStep:
    step = DeviceStep(risk, dynamics, rates, theta)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        step.take(generator)
    return step


@pytest.mark.parametrize("start", [THETA, torch.stack([THETA, 2 * THETA])], ids=["one", "replicas"])
@pytest.mark.parametrize("name", MEMORYLESS)
def test_steps_are_those_of_the_loop(name, start) -> None:
    lr = [0.03 / (1 + step) for step in range(12)]
    found = taken(regression(), ALL[name], start, lr, 12)
    wanted = run(regression(), ALL[name], start, lr=lambda step: lr[step], steps=12, seed=5)
    assert torch.equal(found.theta, wanted.theta)


def test_diverged_replicas_idle_at_the_start() -> None:
    start = torch.tensor([[1.0, -2.0, 0.5], [1e-9, 0.0, 0.0]], dtype=torch.float64)
    found = taken(bowl(), ns.GD(), start, 4.0, 20)
    wanted = run(bowl(), ns.GD(), start, lr=4.0, steps=20)
    assert found.diverged_at.tolist() == wanted.diverged_at.tolist()
    assert min(found.diverged_at.tolist()) < max(found.diverged_at.tolist()) or -1 in found.diverged_at.tolist()
    kept = found.diverged_at < 0
    assert torch.equal(found.theta[kept], wanted.theta[kept])


def test_memory_is_what_a_refresh_an_epoch_or_a_schedule_needs() -> None:
    assert {"sgd", "gd", "gld-full", "gld-constant", "gld-diagonal", "matched"} <= {*MEMORYLESS}
    for dynamics in (
        ns.SGD(3, sampling="epoch"),
        ns.GLDDiagonal(3, refresh=2),
        ns.GLDLeading(3, k=2),
        ns.GLDHessian(3, k=2),
        ns.Yoked(ns.GLDDiagonal(3), torch.ones(4)),
        ns.MatchedTrace(ns.GLDDiagonal(3, refresh=2), 1.0),
    ):
        assert not dynamics.memoryless, dynamics


def test_a_cpu_has_no_graphs() -> None:
    assert captured_step(regression(), ns.GD(), 0.1, THETA, torch.Generator(), 100) is None
