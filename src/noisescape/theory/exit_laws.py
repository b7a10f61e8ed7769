"""Mean exit times that are known: Kramers' limit, discrete chains exactly, and two laws of a barrier's height.

Additive noise: log τ = a + b·ΔL (Kramers). Noise of a variance in proportion to the loss: log τ = a + b·log L_s,
L_s the loss at the top of the barrier. Which of them exit times follow, their likelihood says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import roots_legendre, softmax
from torch import Tensor

from noisescape.errors import FailedError, InvalidValueError
from noisescape.linops import Estimate
from noisescape.scalars import check_positive, check_real, check_whole
from noisescape.theory.exits import ExitTimes, check_times

Line = Callable[[Tensor], Tensor]
"""A function of places on a line, (n,) float64 to (n,)."""


@dataclass(frozen=True)
class KramersTime:
    """A mean exit time in the limit of a high barrier and small steps: in time t = kη, and in steps, time/η.

    Attributes:
        exponent: 2ΔL/(ησ²): the relative error of the limit is of the order of its inverse, and of η|L''|.
    """

    time: float
    steps: float
    exponent: float


def kramers_time(
    minimum_curvature: float, saddle_curvature: float, barrier: float, *, lr: float, variance: float
) -> KramersTime:
    """Mean time from a minimum a over a barrier b in one dimension, for constant noise.

    τ = 2π/√(L''(a)|L''(b)|)·exp(2ΔL/(ησ²)) in units of t = kη, for dθ = −L'dt + √(ησ²)dW and ΔL = L(b) − L(a). It
    is the exact (2/(ησ²))∫e^{2L(y)/(ησ²)}dy ∫e^{−2L(z)/(ησ²)}dz by Laplace: the first integral, over b, is
    √(πησ²/|L''(b)|)e^{2L(b)/(ησ²)}, the second, over a, √(πησ²/L''(a))e^{−2L(a)/(ησ²)}. That is until it is well
    beyond b; b itself is reached in half of it, and with an equal barrier on the other side half is enough too.

    Args:
        minimum_curvature: L''(a) > 0.
        saddle_curvature: L''(b) < 0.
        barrier: ΔL.
        lr: η.
        variance: σ² of the *gradient* noise of a step; the update's is η²σ².

    Raises:
        ValueError: a curvature of the wrong sign; a barrier, rate or variance that is not positive.

    Source: Kramers (1940); for SGD, with σ² = L''(a)/B, Xie, Sato & Sugiyama, arXiv 2002.03495.

    >>> found = kramers_time(8.0, -4.0, 1.0, lr=0.01, variance=50.0)
    >>> found.exponent, round(found.time, 1), round(found.steps)
    (4.0, 60.6, 6064)
    """
    check_positive("minimum_curvature", minimum_curvature)
    check_positive("barrier", barrier)
    check_positive("lr", lr)
    check_positive("variance", variance)
    check_real("saddle_curvature", saddle_curvature)
    if not -math.inf < saddle_curvature < 0:
        raise InvalidValueError(f"saddle_curvature, at the top of the barrier, must be < 0, not {saddle_curvature}")
    exponent = 2 * barrier / (lr * variance)
    rise = math.exp(exponent) if exponent < 700 else math.inf
    time = 2 * math.pi / math.sqrt(minimum_curvature * -saddle_curvature) * rise
    return KramersTime(time, time / lr, exponent)


@dataclass(frozen=True)
class DiscreteExitTime:
    """A mean number of steps, and how far it may be off: what doubling the nodes changed, and what rounding can."""

    steps: float
    error: float


def discrete_exit_time(
    step_mean: Line, step_std: Line, low: float, high: float, start: float, *, points: int = 200, rtol: float = 1e-6
) -> DiscreteExitTime:
    """Mean number of steps until a Gaussian chain in one dimension is outside of (low, high), in discrete time.

    τ(x) = 1 + ∫p(y|x)τ(y)dy over the interval, p(·|x) = N(mean(x), std(x)²). By Nyström: (I − K)τ = 1 at Gauss's
    nodes, then τ(start) from the same equation. τ is smooth inside, so that the error falls faster than any power
    of the nodes' distance once that is below the std. What remains is rounding, a share of about 2e-16·τ.

    Args:
        step_mean: x ↦ E x': x − ηL'(x) for θ ← θ − η(L' + ε).
        step_std: x ↦ the standard deviation of x', of the *update*: η times that of the gradient noise ε.
        low: one end of the interval.
        high: the other.
        start: x₀, between them.
        points: nodes of the coarser solution; the finer has twice as many.
        rtol: relative error allowed.

    Raises:
        ValueError: a start not between the ends; means or deviations that are not finite, not (n,) or not positive.
        FailedError: nodes too far apart for the narrowest step; an error above ``rtol``.

    Source: a Markov chain's renewal equation; for the method Kress, Linear Integral Equations (2014).

    >>> found = discrete_exit_time(torch.zeros_like, torch.ones_like, -1, 1, 0)  # no memory: 1/P(|z| > 1)
    >>> round(found.steps, 6), round(1 / math.erfc(0.5**0.5), 6)
    (3.151487, 3.151487)
    """
    if not -math.inf < low < start < high < math.inf:
        raise InvalidValueError(f"start must lie between low and high, all finite; not {start} in {low} .. {high}")
    check_whole("points", points)
    check_positive("rtol", rtol)

    def solved(count: int) -> float:
        roots, shares = roots_legendre(count)
        half = (high - low) / 2
        nodes, weights = torch.from_numpy(low + half * (1 + roots)), torch.from_numpy(half * shares)
        places = torch.cat([nodes, nodes.new_tensor([start])])
        mean, std = _values(step_mean, places, "step_mean"), _values(step_std, places, "step_std")
        narrowest, gap = float(std.min()), float(nodes.diff(prepend=nodes.new_tensor([low])).max())
        check_positive("the least step_std inside", narrowest)
        if gap > narrowest:
            raise FailedError(
                f"points={count} are up to {gap:.2g} apart, too far for a step of standard deviation "
                f"{narrowest:.2g}: take points={math.ceil(1.1 * count * gap / narrowest)}"
            )
        scaled = (nodes - mean[:, None]) / std[:, None]
        kernel = weights * (-scaled.square() / 2).exp() / (math.sqrt(2 * math.pi) * std[:, None])
        # rows of I − K add up to the chance to leave: known exactly, where a sum over nodes has only its rounding
        leaving = (((mean - low) / std / 2**0.5).erfc() + ((high - mean) / std / 2**0.5).erfc()) / 2
        staying = kernel[:-1] - kernel[:-1].diagonal().diag()
        times = torch.linalg.solve((leaving[:-1] + staying.sum(1)).diag() - staying, torch.ones_like(nodes))
        return 1 + float(kernel[-1] @ times)

    coarse, fine = solved(points), solved(2 * points)
    rounding = torch.finfo(torch.float64).eps * fine**2  # the least eigenvalue of I − K is about 1/τ
    error = abs(fine - coarse) + rounding
    if not (fine >= 1 and error <= rtol * fine):
        rare = not fine >= 1 or 2 * rounding > rtol * fine
        mend = "so rare an exit drowns in rounding: lower the barrier" if rare else f"raise points={points} or rtol"
        raise FailedError(f"the mean exit time, {fine:.4g} steps, may be off by {error:.1e}; {mend}")
    return DiscreteExitTime(fine, error)


@dataclass(frozen=True)
class ExitLaw:
    """log τ = a + b·z, fitted; z is ΔL or the logarithm of a loss.

    Attributes:
        intercept: a, the logarithm of a number of steps.
        slope: b: per unit of the loss for additive noise, a number for noise in proportion to the loss.
        log_likelihood: of all exit times, in steps.
    """

    intercept: Estimate
    slope: Estimate
    log_likelihood: float


@dataclass(frozen=True)
class ExitLawFits:
    """Both laws, fitted to the same exit times.

    Attributes:
        additive: log τ = a + b·ΔL.
        multiplicative: log τ = a + b·log(1 + ΔL/L₀), or a + b·log ΔL where no L₀ was given.
        saturated: log-likelihood with a mean for each barrier. A law that holds is some (barriers − 2)/2 below it;
            where both are far below, neither holds.
    """

    additive: ExitLaw
    multiplicative: ExitLaw
    saturated: float

    @property
    def difference(self) -> float:
        """Log-likelihood of the additive law less that of the multiplicative: above 0 speaks for the additive.

        Both have two parameters: it is half of what the additive law's AIC is below the other's. The likelihoods'
        ratio is its exponential. It is no test, and 1 or 2 decide nothing.
        """
        return self.additive.log_likelihood - self.multiplicative.log_likelihood


def fit_exit_law(
    groups: Sequence[ExitTimes], barriers: Sequence[float], *, minima: Sequence[float] | None = None
) -> ExitLawFits:
    """Both laws of a mean exit time against the barrier's height, by maximum likelihood, times cut off included.

    Exit times are exponential of the law's mean τ: d exits in T replica-steps add −d·log τ − T/τ. Standard errors
    are from the observed information Σ (T/τ)(1, z)(1, z)ᵀ. For additive noise b = 2/(ησ²), :func:`kramers_time`.
    For σ² = cL, dθ = −L'dt + √(ηcL)dW, Laplace's method on (2/(ηc))∫L^{2/(ηc)}dy over the barrier times
    ∫L^{−2/(ηc)−1}dz over the minimum gives τ ∝ (L_s/L₀)^b, b = 2/(ηc) + ½, from L₀ up to L_s = L₀ + ΔL.
    Curvatures go into a, so they must be the same at all barriers.

    Args:
        groups: exit times at each barrier, all at one η.
        barriers: ΔL of each group. From two of them both laws fit alike.
        minima: L₀ of each group. By default the same for all and L₀ ≪ ΔL, where log ΔL is log L_s.

    Raises:
        ValueError: lengths that differ; values not positive; several η; exits at fewer than two different barriers.

    Source: arXiv 2002.03495 for the additive law, 2105.09557 for the other.

    >>> groups = [ExitTimes(torch.tensor([round(math.exp(x))] * 99), torch.ones(99).bool(), 0.1) for x in (7, 8, 9)]
    >>> found = fit_exit_law(groups, [7.0, 8.0, 9.0])
    >>> round(found.additive.slope.value, 2), round(found.additive.slope.stderr, 2), found.difference > 0
    (1.0, 0.07, True)
    """
    for times in groups:
        check_times(times)
    for value in (*barriers, *(minima or ())):
        check_positive("each of barriers and minima", value)
    heights = np.array(barriers, float)
    floors = np.ones_like(heights) if minima is None else np.array(minima, float)
    if not len(groups) == heights.size == floors.size:
        raise InvalidValueError("groups, barriers and minima, where given, must be equally many")
    for value in (*heights, *floors):
        check_positive("each of barriers and minima", value)
    if len(rates := {group.lr for group in groups}) > 1:
        raise InvalidValueError(f"the groups were run at several lr, {sorted(rates)}, on which a slope depends")
    events, exposure = np.array([group.events for group in groups]), np.array([group.exposure for group in groups])
    logs, seen = np.log(heights) if minima is None else np.log1p(heights / floors), events > 0
    if min(len(np.unique(places[seen])) for places in (heights, logs)) < 2:
        raise InvalidValueError("replicas left at fewer than two different barriers: simulate more steps")
    saturated = (events[seen] * np.log(events[seen] / exposure[seen])).sum() - events.sum()
    return ExitLawFits(_fitted(heights, events, exposure), _fitted(logs, events, exposure), float(saturated))


def _fitted(places: np.ndarray, events: np.ndarray, exposure: np.ndarray) -> ExitLaw:
    """log τ = a + b·z of the largest likelihood: where the z of the exits expected, Te^{−bz}, has the mean seen."""
    from scipy.optimize import brentq  # slow to import, and few need it

    total, width = int(events.sum()), np.ptp(places)
    mean = float(events @ places) / total

    def expected(slope: float) -> np.ndarray:
        return softmax(np.log(exposure) - slope * places)

    end = 1 / width
    while not expected(end) @ places < mean < expected(-end) @ places:  # it falls, from the highest to the lowest
        end *= 2
    slope = brentq(lambda b: float(expected(b) @ places) - mean, -end, end, xtol=1e-12 * end)
    intercept = np.log(exposure @ np.exp(-slope * (places - mean)) / total) - slope * mean
    spread = float(expected(slope) @ (places - mean) ** 2)
    errors = np.sqrt(np.array([mean**2 + spread, 1]) / (total * spread))
    fitted = -float(events @ (intercept + slope * places)) - total
    return ExitLaw(Estimate(float(intercept), float(errors[0])), Estimate(float(slope), float(errors[1])), fitted)


def _values(function: Line, places: Tensor, name: str) -> Tensor:
    found = function(places)
    if not isinstance(found, Tensor) or found.shape != places.shape or not bool(found.isfinite().all()):
        raise InvalidValueError(f"{name} must give a finite number for each place inside, (n,) to (n,)")
    return found.detach().to(places)
