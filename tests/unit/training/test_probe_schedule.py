"""A real training under a budget: probed, within it, resumed, and left alone where it cannot be probed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import classes, normal
from noisescape.training import Probe, ProbeSchedule, ProbeWarning, TimeBudget


class Coupled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def training(*layers: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3), *layers)
    batch = normal(256, 20, seed=1, dtype=torch.float32), classes(256, of=3, seed=2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), batch


@pytest.mark.slow
def test_a_training_is_probed_early_and_within_its_share():
    """The work is real and the clock is not: each forward pass takes a second, whoever makes it."""
    model, optimizer, (inputs, targets) = training()
    seconds = 0

    def pass_time(*_: object) -> None:
        nonlocal seconds
        seconds += 1

    model.register_forward_hook(pass_time)
    budget = TimeBudget(0.2, clock=lambda: seconds)
    schedule = ProbeSchedule(Probe(model, F.cross_entropy, samples=32), budget)
    probed: dict[int, dict[str, float]] = {}
    for number in range(1, 4001):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        schedule.tick()
        if number % 50 == 0 and (found := schedule.step(optimizer, batch=(inputs, targets))):
            probed[number] = found
        assert budget.spent <= 0.2 * budget.training
    assert [int(found["probe/samples"]) for found in probed.values()][:3] == [16, 32, 32]
    assert next(iter(probed)) <= 2500
    assert 0.1 < budget.share < 0.2
    assert all(found["probe/stability_edge"] == pytest.approx(20) for found in probed.values())
    assert all(found["probe/samples"] == 32 for found in list(probed.values())[1:])


def test_a_real_clock_is_kept_to():
    model, optimizer, batch = training()
    schedule = ProbeSchedule(Probe(model, F.cross_entropy, samples=16), TimeBudget(0.5))
    probes = 0
    for number in range(1, 20_001):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        schedule.tick()
        if number % 10 == 0:
            probes += bool(schedule.step(optimizer, batch=batch))
        if probes >= 3:
            break
    assert probes == 3
    assert 0 < schedule.budget.share < 0.5
    assert schedule.budget.spent <= 0.5 * schedule.budget.training * 1.5  # another program may have the machine


def test_a_model_that_cannot_be_probed_is_tried_ever_less():
    model, optimizer, batch = training(Coupled())
    probe = Probe(model, F.cross_entropy)
    schedule = ProbeSchedule(probe, TimeBudget(None))
    tried, number = [], 0
    opened = probe.open

    def counted(batch: object = None) -> bool:
        tried.append(number)
        return opened(batch)

    probe.open = counted  # type: ignore[method-assign]
    with pytest.warns(ProbeWarning, match="influence each other"):
        assert schedule.step(optimizer, batch=batch) == {}
    while number < 19:  # without another warning, which would be an error
        number += 1
        assert schedule.step(optimizer, batch=batch) == {}
    assert tried == [0, 2, 5, 10, 19]


def test_a_schedule_goes_on_from_its_state():
    model, optimizer, batch = training()
    schedule = ProbeSchedule(Probe(model, F.cross_entropy), TimeBudget(0.999, clock=iter(range(10**9)).__next__))
    for _ in range(5000):
        schedule.tick()
    first = schedule.step(optimizer, batch=batch)
    assert first["probe/samples"] == 16
    state = schedule.state_dict()
    again = ProbeSchedule(Probe(model, F.cross_entropy), TimeBudget(0.999, clock=iter(range(10**9)).__next__))
    again.load_state_dict(state)
    for _ in range(5000):
        again.tick()
    assert again.step(optimizer, batch=batch) == {}  # the model is tried, as it is in each process
    for _ in range(5000):
        again.tick()
    assert again.step(optimizer, batch=batch)["probe/samples"] == 32
    assert again.budget.spent > state["budget"]["spent"]
