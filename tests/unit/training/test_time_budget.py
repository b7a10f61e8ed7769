"""The budget is kept, from the first measurement on, over simulated trainings of all kinds; and it is used."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.training import ProbeSchedule, TimeBudget
from noisescape.training.time_budget import MARGIN, START_SECONDS, START_STEPS


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Simulated:
    """A training with a probe whose work takes time on a clock and nothing else.

    Attributes:
        step: seconds a step, and its spread from one to the next.
        opening, fixed, per_sample: what a probe costs, in steps.
        noise: the share by which a probe may cost more or less than that.
        shocks: how often one costs four times as much.
        drift: how much slower or faster the machine may become, now and then.
        sleeps: how often there is a pause of a thousand steps between two steps.
    """

    seed: int
    step: float = 0.01
    opening: float = 80.0
    fixed: float = 10.0
    per_sample: float = 0.5
    noise: float = 0.1
    shocks: float = 0.0
    drift: float = 1.0
    sleeps: float = 0.0
    overhead: float | None = 0.05
    every: int = 10
    samples: int = 64
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.speed = 1.0
        self.opened = False
        self.works: list[tuple[float, float, float]] = []  # allowance left over, predicted, taken
        self.taken: list[int] = []
        self.budget = TimeBudget(self.overhead, clock=self.clock)
        self.schedule = ProbeSchedule(self, self.budget)  # type: ignore[arg-type]
        self.number = 0

    # what a schedule asks of a probe
    def available(self, batch: Any = None) -> int:
        return self.samples

    def is_open(self, batch: Any = None) -> bool:
        return self.opened

    def synchronise(self) -> None:
        pass

    def open(self, batch: Any = None) -> bool:
        self._work("opening", 64, self.opening)
        self.opened = True
        return True

    def measure(self, optimizer: Any, *, batch: Any, batch_size: Any, samples: int) -> dict[str, float]:
        self._work("measuring", samples, self.fixed + self.per_sample * samples)
        self.taken.append(samples)
        return {"probe/samples": float(samples)}

    def _work(self, kind: str, size: int, steps: float) -> None:
        budget = self.budget
        if budget.overhead is not None:
            before = budget.overhead * budget.training - budget.spent
            predicted = budget.predicted(kind, size, lambda step: 0.0)
            self.works.append((before, predicted or 0.0, 0.0))
        factor = 4.0 if self.random.random() < self.shocks else 1.0
        taken = steps * self.step * self.speed * factor * (1 + self.noise * self.random.uniform(-1, 1))
        self.clock.now += taken
        if self.works:
            self.works[-1] = (*self.works[-1][:2], taken)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.clock.now += self.step * self.speed * self.random.uniform(0.8, 1.2)
            if self.random.random() < self.sleeps:
                self.clock.now += 1000 * self.step
            if self.random.random() < 0.002:
                self.speed = self.random.choice([1.0, self.drift, 1 / self.drift])
            self.schedule.tick()
            self.number += 1
            if self.number % self.every == 0:
                self.schedule.step(None)  # type: ignore[arg-type]
            if self.overhead is not None and not (self.shocks or self.drift != 1):
                assert self.budget.spent <= self.overhead * self.budget.training + 1e-9


def random_training(seed: int, **options: Any) -> Simulated:
    draw = random.Random(seed + 10_000)
    step = 10 ** draw.uniform(-4, 1)
    return Simulated(
        seed,
        step=step,
        opening=draw.uniform(5, 140),
        fixed=draw.uniform(1, 30),
        per_sample=draw.uniform(0, 1),
        noise=draw.uniform(0, 0.1),
        overhead=draw.choice([0.01, 0.05, 0.2]),
        every=draw.choice([1, 10, 100]),
        samples=draw.choice([8, 20, 64, 256]),
        **options,
    )


@pytest.mark.parametrize("seed", range(60))
def test_at_no_moment_is_more_spent_than_was_earned(seed):
    """Asserted after each step; costs vary by up to a tenth, steps by a fifth, with pauses in every second."""
    training = random_training(seed, sleeps=0.001 * (seed % 2))
    training.train(4000)
    assert training.budget.share <= training.overhead


@pytest.mark.parametrize("seed", range(60))
def test_what_is_dearer_than_predicted_is_earned_back_before_the_next(seed):
    """A tenth of the probes cost four times as much, and the machine becomes three times slower or faster."""
    training = random_training(seed, shocks=0.1, drift=3.0)
    training.train(4000)
    over = max((taken - MARGIN * predicted for _, predicted, taken in training.works), default=0.0)
    assert all(before >= MARGIN * predicted - 1e-9 for before, predicted, _ in training.works)
    assert training.budget.spent <= training.overhead * training.budget.training + max(0.0, over) + 1e-9


@pytest.mark.parametrize("overhead", [0.01, 0.05, 0.3])
def test_most_of_it_is_used(overhead):
    training = Simulated(1, overhead=overhead)
    training.train(100_000)
    assert 0.6 * overhead < training.budget.share <= overhead
    assert set(training.taken) == {16, 32, 64}
    assert training.taken[:3] == [16, 32, 64]


def test_a_pause_is_followed_by_one_probe_and_not_by_many():
    training = Simulated(2)
    training.train(20_000)
    before = len(training.taken)
    training.clock.now += 100_000
    training.train(100)  # ten intervals; a probe of 42 steps is earned in 840
    assert len(training.taken) - before <= 1
    training.train(2000)
    assert len(training.taken) - before <= 4


def test_what_cannot_be_paid_for_is_not_begun():
    """The first is a trial, predicted at 2 s: at a share of 0.001 it takes 2,500 s, or 250,000 steps, to earn."""
    training = Simulated(3, overhead=0.001)
    training.train(240_000)
    assert training.budget.spent == 0
    training.train(25_000)
    assert training.opened
    assert 0 < training.budget.spent <= 0.001 * training.budget.training


def test_a_first_step_that_compiles_does_not_count():
    clock = Clock()
    budget = TimeBudget(clock=clock)
    clock.now += 60
    budget.tick()
    clock.now += 1
    budget.tick()
    assert (budget.training, budget.step_seconds) == (1.0, 1.0)


def test_without_an_overhead_every_interval_is_probed_with_all_samples():
    training = Simulated(4, overhead=None)
    training.train(200)
    assert training.taken == [64] * 20
    assert training.budget.share > 0.5


@pytest.mark.parametrize("cut", [150, 1999, 5000])
def test_a_resumed_training_keeps_the_account(cut):
    training = Simulated(5)
    training.train(cut)
    state = json.loads(json.dumps(training.schedule.state_dict()))
    resumed = Simulated(6)
    resumed.opened = training.opened
    resumed.clock.now += 500_000  # days later
    resumed.schedule.load_state_dict(state)
    assert resumed.schedule.state_dict() == training.schedule.state_dict()
    resumed.train(5000)
    assert resumed.budget.training > training.budget.training
    assert resumed.budget.training < training.budget.training + 5000 * 1.3 * resumed.step
    assert resumed.budget.share <= 0.05


def test_predictions_grow_with_size_and_follow_slower_steps():
    clock = Clock()
    budget = TimeBudget(clock=clock)
    assert budget.predicted("probe", 16) is None
    assert not budget.affords("probe", 16)
    for _ in range(65):
        clock.now += 0.1
        budget.tick()
    assert budget.predicted("probe", 16) == pytest.approx(START_SECONDS + START_STEPS * 0.1)
    assert budget.predicted("probe", 16, lambda step: 7 * step) == pytest.approx(0.7)
    for size, cost in ((16, 2.0), (16, 1.0), (64, 3.0)):
        with budget.spending("probe", size):
            clock.now += cost
    found = {size: round(budget.predicted("probe", size), 9) for size in (8, 16, 32, 64, 128)}
    assert found == {8: 2.0, 16: 2.0, 32: 4.0, 64: 3.0, 128: 6.0}
    for _ in range(65):
        clock.now += 0.2
        budget.tick()
    assert budget.predicted("probe", 64) == pytest.approx(6.0)


def test_a_step_that_was_interrupted_counts_whole_and_once():
    clock = Clock()
    budget = TimeBudget(clock=clock)
    budget.tick()
    clock.now += 1
    with budget.spending("probe", 1):
        clock.now += 50
    clock.now += 2
    budget.tick()
    assert (budget.training, budget.spent, budget.step_seconds) == (3.0, 50.0, 3.0)
    assert budget.share == 50 / 53


def test_time_in_which_an_error_came_is_spent():
    clock = Clock()
    budget = TimeBudget(clock=clock)
    budget.tick()

    def fails() -> None:
        with budget.spending("probe", 1):
            clock.now += 5
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert budget.spent == 5
    assert budget.predicted("probe", 1) == 5


@pytest.mark.parametrize(
    ("overhead", "error"),
    [
        (0.0, InvalidValueError),
        (1.0, InvalidValueError),
        (-1, InvalidValueError),
        ("5%", InvalidTypeError),
        (True, InvalidTypeError),
    ],
)
def test_an_overhead_that_is_no_share_is_refused(overhead, error):
    with pytest.raises(error, match="overhead"):
        TimeBudget(overhead)


@pytest.mark.parametrize(
    "state",
    [{}, {"training": "long"}, [], {"training": 1, "spent": 1, "allowance": 1, "recent": [], "costs": {"a": 3}}],
)
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(InvalidValueError, match="TimeBudget"):
        TimeBudget().load_state_dict(state)
    with pytest.raises(InvalidValueError, match="no state of a"):
        Simulated(7).schedule.load_state_dict(state)
