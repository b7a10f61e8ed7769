"""How long a dynamics stays in a region: first exits of many replicas, those cut off counted as what they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from noisescape.distributed.shard import is_first
from noisescape.dynamics import Dynamics
from noisescape.dynamics.base import check_dynamics
from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of
from noisescape.risk import EmpiricalRisk
from noisescape.risk.arguments import check_risk, check_theta
from noisescape.runs.progress import steps_bar
from noisescape.scalars import check_level, check_positive, check_seed, check_whole
from noisescape.simulation.divergence import lost

Region = Callable[[Tensor], Tensor]
"""θ of all replicas, (R, D) ↦ whether each is inside, bool, (R,)."""


@dataclass(frozen=True)
class ExitTimes:
    """How long each replica stayed.

    Attributes:
        times: the step, counted from 1, at which a replica was first outside, or the last at which it was watched;
            whole numbers, (R,).
        left: whether it left; False where it was still inside when watching ended, bool, (R,).
        lr: η, a step's length in time: t = kη.
    """

    times: Tensor
    left: Tensor
    lr: float

    def __post_init__(self) -> None:
        times, left = self.times, self.left
        whole = isinstance(times, Tensor) and times.dtype in (torch.int64, torch.int32)
        if not whole or times.ndim != 1 or not len(times):
            raise InvalidValueError(f"times must be whole numbers, one a replica, (R,), not {_kind(times)}")
        if not isinstance(left, Tensor) or left.dtype != torch.bool or left.shape != times.shape:
            raise InvalidValueError(f"left must be bool, ({len(times)},) as times, not {_kind(left)}")
        if int(times.min()) < 1:
            raise InvalidValueError(f"times are counted from 1, the first step; one is {int(times.min())}")
        check_positive("lr", self.lr)

    @property
    def events(self) -> int:
        """Replicas that left."""
        return int(self.left.sum())

    @property
    def exposure(self) -> int:
        """Steps for which replicas were watched inside, summed over them."""
        return int(self.times.sum())


def exit_times(
    risk: EmpiricalRisk,
    dynamics: Dynamics,
    theta: Tensor,
    *,
    lr: float,
    steps: int,
    replicas: int,
    inside: Region,
    seed: int = 0,
    progress: bool = True,
) -> ExitTimes:
    """When each of R replicas of a dynamics first leaves a region: min k ≥ 1 with θ_k outside.

    θ ← θ − η(∇L + ε) from one start, with independent gradient noise. A replica that leaves every bound left the
    region at that step. One that left changes nothing for the others: each has the path it would have were the
    region another, so that at the same seed a larger region is never left earlier.

    All R are moved until the last one's exit, some log R mean times away. A limit of about the mean time is
    cheaper for the same error: what is estimated from the times knows how to count those that were cut off.

    Args:
        risk: L; a model's replicas are mapped or taken in turn as in :func:`~noisescape.simulate`.
        dynamics: the law of ε.
        theta: where all begin, (D,), inside.
        lr: η.
        steps: after which those that are still inside are let be.
        replicas: R.
        inside: the region, ``lambda theta: recorders.loss(risk, theta) < 0.5``, say. Only asked of finite θ.
        seed: of the noise.
        progress: show a bar on the terminal's error stream.

    Raises:
        ValueError: a start outside of the region; a region that does not answer one bool a replica; constants that
            do not fit the risk; steps, lr or replicas ≤ 0; more steps than the dynamics has noise for.

    >>> import noisescape as ns
    >>> hill = ns.EmpiricalRisk.from_losses(lambda x: -x.square(), torch.ones(1))
    >>> left = exit_times(hill, ns.GD(), torch.ones(1), lr=0.5, steps=9, replicas=2, inside=lambda x: x[:, 0] < 5)
    >>> left.times
    tensor([3, 3])
    """
    check_risk(risk)
    check_theta(theta, risk.dimension, risk.dtype, risk.device, replicas=False)
    check_dynamics(dynamics)
    check_positive("lr", lr)
    check_whole("steps", steps)
    check_whole("replicas", replicas)
    check_seed(seed)
    state = dynamics.init(risk)
    if dynamics.longest is not None and steps > dynamics.longest:
        raise InvalidValueError(f"{dynamics.name} has noise for {dynamics.longest} steps, not for {steps}")
    start = theta.detach().expand(replicas, -1).contiguous()
    if not (bool(torch.isfinite(theta).all()) and bool(_answer(inside, start).all())):
        raise InvalidValueError("the start is not finite, or outside of the region: begin where inside is True")
    generator = torch.Generator(theta.device).manual_seed(seed)
    place, times = start, torch.zeros(replicas, dtype=torch.int64, device=theta.device)
    with steps_bar(dynamics.name, steps, shown=progress and is_first(risk.shard)) as advance:
        for step in range(1, steps + 1):
            gradient, state = dynamics.noisy_gradient(risk, place, state, generator)
            place = place - lr * gradient
            gone = lost(place)
            place = torch.where(gone[:, None], start, place)
            out = gone | ~_answer(inside, place)
            times = torch.where(out & (times == 0), step, times)
            if bool(times.all()):
                break
            # they idle where every derivative is finite; were they dropped, the others would draw other noise
            place = torch.where((times > 0)[:, None], start, place).contiguous()
            advance(1)
    left = times > 0
    return ExitTimes(torch.where(left, times, steps).cpu(), left.cpu(), float(lr))


@dataclass(frozen=True)
class ExitRate:
    """Exits per step, the interval's ends, low and high, per step too, and η."""

    per_step: float
    low: float
    high: float
    lr: float

    @property
    def per_time(self) -> tuple[float, float, float]:
        """Rate, low and high per unit of t = kη: those per step, over η."""
        return self.per_step / self.lr, self.low / self.lr, self.high / self.lr


def exit_rate(times: ExitTimes, *, level: float = 0.95) -> ExitRate:
    """The rate of exponential exit times that were cut off: d/T, d exits in T replica-steps, with an interval.

    d/T has the largest likelihood λᵈe^{−λT}; of geometric times too, such as a chain's are. The interval is from
    χ²'s quantile at α/2 with 2d degrees of freedom, over 2T, to that at 1 − α/2 with 2d + 2: a little wide, most so
    for few exits. Without any it is from 0 to −log(α)/T, a one-sided bound at the whole ``level``. Assumed is one
    rate for all replicas and steps. While they still spread from their start it is another, and :func:`survival` on
    a logarithmic scale no line: where that lasts b steps that count, take t − b of the times t > b.

    Args:
        times: as they were seen.
        level: of the interval, 1 − α.

    Raises:
        ValueError: a level not strictly between 0 and 1.

    Source: Cox & Oakes, Analysis of Survival Data (1984), chapter 3.

    >>> found = exit_rate(ExitTimes(torch.tensor([3, 5, 12]), torch.tensor([True, True, False]), lr=0.1))
    >>> found.per_step, round(found.low, 4), round(found.high, 4)
    (0.1, 0.0121, 0.3612)
    """
    check_times(times)
    check_level("an interval's level", level)
    events, exposure = times.events, times.exposure
    tail = (1 - level) / 2 if events else 1 - level
    # half of χ²'s quantiles are those of Gamma(d, 1)
    low = float(gammaincinv(events, tail)) / exposure if events else 0.0
    high = float(gammaincinv(events + 1, 1 - tail)) / exposure
    return ExitRate(events / exposure, low, high, times.lr)


@dataclass(frozen=True)
class Survival:
    """The share of replicas still inside, by Kaplan and Meier.

    Attributes:
        steps: at which some left or ceased to be watched, rising, (K,).
        share: P(exit later than the step), float64, (K,); 1 before the first, constant between two.
        low, high: the interval at each step alone, (K,); NaN where none or all had left.
        lr: η; time is η × steps.
    """

    steps: Tensor
    share: Tensor
    low: Tensor
    high: Tensor
    lr: float


def survival(times: ExitTimes, *, level: float = 0.95) -> Survival:
    """Kaplan and Meier's Π_{k ≤ t} (1 − d_k/n_k), d_k of the n_k still watched leaving at step k, by SciPy.

    The interval is Greenwood's on the scale of log(−log), which keeps it within 0 and 1. Of the exits' law nothing
    is assumed, only that what ended the watch had nothing to do with it.

    Args:
        times: as they were seen.
        level: of the intervals, each of its step alone, not of the curve as a whole.

    Raises:
        ValueError: a level not strictly between 0 and 1.

    Source: Kaplan & Meier (1958); :func:`scipy.stats.ecdf`.

    >>> survival(ExitTimes(torch.tensor([3, 5, 5, 9]), torch.tensor([True, True, False, True]), lr=0.1)).share
    tensor([0.7500, 0.5000, 0.0000], dtype=torch.float64)
    """
    from scipy import stats  # slow to import, and few need it

    check_times(times)
    check_level("an interval's level", level)
    seen, left = times.times.double().cpu().numpy(), times.left.cpu().numpy()
    curve = stats.ecdf(stats.CensoredData(uncensored=seen[left], right=seen[~left])).sf
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of the NaN that are spoken of above
        ends = curve.confidence_interval(level, method="log-log")
    share, low, high = (torch.from_numpy(part.probabilities) for part in (curve, ends.low, ends.high))
    return Survival(torch.from_numpy(curve.quantiles).long(), share, low, high, times.lr)


def check_times(times: object) -> None:
    """Refuse what is no :class:`ExitTimes`."""
    if not isinstance(times, ExitTimes):
        raise InvalidTypeError(f"times must be ExitTimes, not {kind_of(times)}")


def _answer(inside: Region, theta: Tensor) -> Tensor:
    if not callable(inside):
        raise InvalidTypeError(f"inside must be a function of θ (R, D), not {kind_of(inside)}")
    found = inside(theta)
    if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != theta.shape[:1]:
        raise InvalidValueError(
            f"inside must answer θ (R, D) with one bool a replica, ({len(theta)},), not {_kind(found)}: for "
            "example lambda theta: theta.norm(dim=-1) < 1"
        )
    return found


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
