"""When a training is probed, and with how many samples, so that a time budget is kept."""

from __future__ import annotations

from typing import Any

import torch

from noisescape.errors import InvalidValueError
from noisescape.training.probe import FEWEST, Probe
from noisescape.training.time_budget import START_SECONDS, START_STEPS, TimeBudget

FIRST_SAMPLES = 16
"""Samples of the first probe; each next one takes twice as many, up to all there are."""
TRIALS = 2
"""What a first probe of 16 samples is taken to cost, in trials of the model. Measured: 0.1 to 1.5."""
OPENING, MEASURING = "opening", "measuring"


class ProbeSchedule:
    """Probes a training at its report intervals, as often as a time budget allows.

    The first probe comes as soon as it can be paid for, with 16 samples; each next one takes twice as many, up to
    all of the probe's: so the first figures come early, and then each is as good as it can be. The trial of the
    model that the first needs is paid for, too. Where the model cannot be probed, it is tried again
    after 1, 2, 4, … intervals.

    With several processes, probe in one of them: the others wait for it, and what they wait for is no probe of
    theirs, so that probes in all of them would add up.

    Args:
        probe: what is measured.
        budget: of what time. Default 5 % of the training's wall time; with ``TimeBudget(None)`` every interval is
            probed, with all samples, whatever it takes.

    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> schedule = ProbeSchedule(Probe(model, torch.nn.functional.cross_entropy), TimeBudget(None))
    >>> batch = torch.randn(20, 3), torch.randint(0, 2, (20,))
    >>> schedule.tick()  # after each step
    >>> figures = schedule.step(optimizer, batch=batch)  # every so many
    >>> figures["probe/samples"], figures["probe/top_eigenvalue_over_edge"] < 1
    (20.0, True)
    """

    def __init__(self, probe: Probe, budget: TimeBudget | None = None) -> None:
        self.probe = probe
        self.budget = TimeBudget() if budget is None else budget
        self._wanted = FIRST_SAMPLES
        self._failures = 0
        self._wait = 0

    def tick(self) -> None:
        """Call after each training step: the budget reads the clock, and nothing else happens."""
        self.budget.tick()

    def step(
        self, optimizer: torch.optim.Optimizer, *, batch: Any = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """Call at each report interval: what :meth:`Probe.measure` gives, with its arguments; {}: not now."""
        if self._wait:
            self._wait -= 1
            return {}
        available = self.probe.available(batch)
        if not available:
            return {}
        if not self.probe.is_open(batch) and not self._opened(batch, batch_size, available):
            return {}
        samples = available if self.budget.overhead is None else min(self._wanted, available)
        if not self.budget.affords(MEASURING, samples, start=lambda step: self._first(samples, step)):
            return {}
        self.probe.synchronise()
        with self.budget.spending(MEASURING, samples):
            found = self.probe.measure(optimizer, batch=batch, batch_size=batch_size, samples=samples)
        if not found:
            self._put_off()
            return {}
        self._failures = 0
        if samples == self._wanted:
            self._wanted *= 2
        return found

    def _opened(self, batch: Any, batch_size: int | None, available: int) -> bool:
        """Whether the model has been tried, if need be now."""
        # the trial evaluates up to 64 samples together, whatever a training step does
        wide = max(1.0, min(available, 64) / (batch_size or available))
        if not self.budget.affords(
            OPENING, available, start=lambda step: START_SECONDS + START_STEPS * wide * step
        ):
            return False
        self.probe.synchronise()
        with self.budget.spending(OPENING, available):
            opened = self.probe.open(batch)
        if not opened:
            self._put_off()
        return opened

    def _first(self, samples: int, step: float) -> float:
        """What a first probe is taken to cost, by what the trial did."""
        trial = self.budget.predicted(OPENING, FIRST_SAMPLES)
        return (step if trial is None else trial) * TRIALS * max(1.0, samples / FIRST_SAMPLES)

    def _put_off(self) -> None:
        self._wait = 2**self._failures
        self._failures = min(self._failures + 1, 10)

    def state_dict(self) -> dict[str, Any]:
        """The budget's account and how many samples come next, as plain numbers."""
        return {"budget": self.budget.state_dict(), "wanted": self._wanted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is none.
        """
        try:
            wanted, budget = int(state["wanted"]), state["budget"]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidValueError(
                f"this is no state of a ProbeSchedule ({type(error).__name__}: {error}); pass what its "
                "state_dict() returned"
            ) from error
        self.budget.load_state_dict(budget)
        self._wanted = max(FEWEST, wanted)
