"""How much wall time measurements may take beside a training, and keeping to it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from noisescape.errors import InvalidTypeError, InvalidValueError

MARGIN = 1.25
"""Times the predicted cost that must have been saved up."""
RECENT = 64
"""Steps that say how long a step takes now."""
REMEMBERED = 4
"""Costs of one kind and size that are remembered; the dearest counts."""
START_SECONDS = 0.5
START_STEPS = 150
"""What work of which nothing is known is taken to cost: so many seconds, for libraries that load when they are
first used, and training steps. Measured for the trial of five models: docs/decisions/0017-probes.md."""


@dataclass(frozen=True)
class _Cost:
    """What some work took, and how long a training step took then."""

    seconds: float
    step: float


class TimeBudget:
    """Keeps measurements to a share of a training's wall time, from the first of them on.

    Time between one step and the next is training, but for what is spent within :meth:`spending`. Training earns
    ``overhead`` seconds of allowance a second; work is affordable once 1.25 times its predicted cost has been
    earned; what it really took is taken off, so that work dearer than predicted is earned back before the next. So,
    with T seconds of training and S spent, whenever work begins

        S + (what it is predicted to cost)·1.25 ≤ overhead·T ,

    the bound is on the time *without* measurements, and the share of the whole, S/(S + T), is smaller still. No
    more is saved up than the work that is waited for takes: after a pause (a validation, a stopped notebook)
    measurements do not come in a burst.

    Predicted is what work of that kind has cost: of the sizes seen, the largest that is not over the one asked for,
    in proportion to size, else the smallest, undiminished; the dearest of the last four times, and dearer if steps
    have become slower since. Before any is known it is half a second and 150 training steps.

    Args:
        overhead: the share; None: all is affordable, and only accounted for.
        clock: seconds, as ``time.perf_counter``.

    Raises:
        ValueError: an overhead that is not above 0 and below 1.

    >>> now = iter(range(100))
    >>> budget = TimeBudget(0.5, clock=lambda: next(now))
    >>> for _ in range(9):
    ...     budget.tick()
    >>> budget.training, budget.affords("probe", 1, start=lambda step: 4 * step)
    (8.0, False)
    >>> budget.tick(), budget.tick(), budget.affords("probe", 1, start=lambda step: 4 * step)
    (None, None, True)
    """

    def __init__(self, overhead: float | None = 0.05, *, clock: Callable[[], float] = time.perf_counter) -> None:
        if overhead is not None and (isinstance(overhead, bool) or not isinstance(overhead, (int, float))):
            raise InvalidTypeError(f"overhead is a share of wall time or None, not {overhead!r}")
        if overhead is not None and not 0 < overhead < 1:
            raise InvalidValueError(
                f"overhead, a share of wall time, must lie between 0 and 1, not {overhead}; None measures at every "
                "interval, whatever it costs"
            )
        self.overhead = overhead
        self.training = 0.0
        self.spent = 0.0
        self._clock = clock
        self._last: float | None = None
        self._part = 0.0  # of the present step, before work that it was interrupted by
        self._allowance = 0.0
        self._most = float("inf")
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._costs: dict[str, dict[int, deque[_Cost]]] = {}

    def tick(self) -> None:
        """Call after each training step. The first call starts the account."""
        if self._last is not None:
            self._recent.append(self._earn() + self._part)
            self._part = 0.0
        else:
            self._last = self._clock()

    def _earn(self) -> float:
        """Count the time since the last look at the clock as training."""
        now = self._clock()
        seconds = 0.0 if self._last is None else now - self._last
        self._last = now
        self.training += seconds
        if self.overhead is not None:
            self._allowance = min(self._allowance + self.overhead * seconds, self._most)
        return seconds

    @property
    def step_seconds(self) -> float | None:
        """How long a training step takes, the mean of the last 64; None before there are two."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    @property
    def share(self) -> float:
        """The share of wall time that was spent so far, S/(S + T)."""
        whole = self.spent + self.training
        return self.spent / whole if whole else 0.0

    def predicted(self, kind: str, size: int, start: Callable[[float], float] | None = None) -> float | None:
        """Seconds that work of a kind and size is taken to cost; None before there is a step to go by.

        Args:
            kind: of work.
            size: what its cost grows with.
            start: seconds of a training step ↦ the cost, while nothing is known of this kind.
        """
        step = self.step_seconds
        known = self._costs.get(kind)
        if not known:
            if step is None:
                return None
            return START_SECONDS + START_STEPS * step if start is None else start(step)
        below = [each for each in known if each <= size]
        nearest = max(below) if below else min(known)
        dearest = max(
            cost.seconds * max(1.0, step / cost.step if step and cost.step else 1.0) for cost in known[nearest]
        )
        return dearest * max(1.0, size / nearest)

    def affords(self, kind: str, size: int, start: Callable[[float], float] | None = None) -> bool:
        """Whether the work can be paid for now; if not, it is saved up for. Arguments as of :meth:`predicted`."""
        if self.overhead is None:
            return True
        cost = self.predicted(kind, size, start)
        if cost is None:
            return False
        self._most = MARGIN * cost
        self._allowance = min(self._allowance, self._most)
        return self._allowance >= self._most

    @contextlib.contextmanager
    def spending(self, kind: str, size: int) -> Iterator[None]:
        """Within is work of a kind and size, which is paid for; an error in it, too."""
        self._part += self._earn()
        begun = self._last
        assert begun is not None
        try:
            yield
        finally:
            self._last = self._clock()
            seconds = self._last - begun
            self.spent += seconds
            if self.overhead is not None:
                self._allowance -= seconds
            sizes = self._costs.setdefault(kind, {})
            sizes.setdefault(size, deque(maxlen=REMEMBERED)).append(_Cost(seconds, self.step_seconds or 0.0))

    def state_dict(self) -> dict[str, Any]:
        """The account, as plain numbers: a training that is resumed goes on with it."""
        return {
            "training": self.training,
            "spent": self.spent,
            "allowance": self._allowance,
            "recent": list(self._recent),
            "costs": {
                kind: [[size, cost.seconds, cost.step] for size, costs in sizes.items() for cost in costs]
                for kind, sizes in self._costs.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an account. The time since it was saved counts neither way.

        Raises:
            ValueError: it is no such account.
        """
        try:
            training, spent, allowance = (float(state[name]) for name in ("training", "spent", "allowance"))
            recent = deque(map(float, state["recent"]), maxlen=RECENT)
            costs: dict[str, dict[int, deque[_Cost]]] = {}
            for kind, rows in state["costs"].items():
                for size, seconds, step in rows:
                    sizes = costs.setdefault(str(kind), {})
                    sizes.setdefault(int(size), deque(maxlen=REMEMBERED)).append(_Cost(float(seconds), float(step)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidValueError(
                f"this is no state of a TimeBudget ({type(error).__name__}: {error}); pass what its state_dict() "
                "returned"
            ) from error
        self.training, self.spent, self._allowance = training, spent, allowance
        self._recent, self._costs = recent, costs
        self._last, self._part, self._most = None, 0.0, float("inf")
