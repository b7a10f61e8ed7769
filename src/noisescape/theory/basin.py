"""Which basin an iterate is in, and how sharp: minima settled, noise quenched, losses matched, barriers measured.

Sharpness at a fixed step compares little: an iterate in the middle of a spike, or held off the floor by its noise,
is compared with one that has come to rest, and cross-entropy grows flatter as it falls. Here two iterates are
compared at the same loss, from starts that are at rest, and what lies between them is measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError, NonFiniteLossError, kind_of
from noisescape.linops.tall import inner_products, lengths
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.risk.arguments import check_risk, check_theta
from noisescape.risk.hessian_pairs import leading_hessian_pairs
from noisescape.risk.passes import loss_and_gradient, unchecked_losses
from noisescape.scalars import check_positive, check_real, check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECENT = 10
"""Steps of a quench within which the loss must come to a new least value, and above whose highest none may end. One
is too few: over a kink of a ReLU network the loss falls on the whole, but not at every step, and steps that must
each bring a fall shrink to nothing there."""
GROWTH = 1.2
"""Factor by which the steps of a quench grow again, up to the longest. At 1, 1.05, 1.2 and 2 the level was reached
on 3, 3, 5 and 11 of 12 ReLU networks of 12 samples each; at 2 a double well was not settled in at ηλ = 4."""
SHORTEST = 1e-6
"""Share of the rate asked for below which a step is none."""
LOOK_AGAIN = 25
"""Steps until λ₁, which costs some twenty of them, is computed again where it was too large."""
SAME_LEVEL = 1e-4
"""Relative distance to a level of the loss that counts as on it."""


@dataclass(frozen=True)
class Settled:
    """Where gradient descent came to rest, or stopped.

    Attributes:
        theta: (D,).
        loss: L.
        gradient_norm: ‖ḡ‖.
        largest_eigenvalue: λ₁ of H, to a per cent.
        steps: taken.
        settled: whether both conditions hold; if not, the steps ran out.
    """

    theta: Tensor
    loss: float
    gradient_norm: float
    largest_eigenvalue: float
    steps: int
    settled: bool


def settle(
    risk: EmpiricalRisk, theta: Tensor, *, lr: float, steps: int, gradient_norm: float, largest_eigenvalue: float
) -> Settled:
    """Gradient descent until ‖ḡ‖ < ``gradient_norm`` and λ₁ < ``largest_eigenvalue``.

    A minimum that a dynamics of learning rate η is to leave must be one in which gradient descent stays at that
    rate, λ₁ < 2/η: else what leaves is not driven by noise. Both conditions also hold at a saddle that is flat
    enough; what gradient descent comes to rest at is hardly ever one.

    Args:
        risk: L.
        theta: where to begin, (D,).
        lr: of the descent.
        steps: at most; 0 only looks.
        gradient_norm: of the gradient ḡ of L.
        largest_eigenvalue: of H, in units of the loss; 1.8/η leaves a tenth of the stable range. Compared with
            a λ₁ that is known to a per cent; where it is too large, it is looked at again `LOOK_AGAIN` steps on.

    Raises:
        ValueError: a constant that is not positive, steps < 0; replicas.
        NonFiniteLossError: the loss is not finite, at θ or where the descent leads.

    >>> import noisescape as ns
    >>> bowl = ns.landscapes.quadratic(torch.diag(torch.tensor([4.0, 1.0])), torch.zeros(2, 2))
    >>> settle(bowl, torch.ones(2), lr=0.25, steps=99, gradient_norm=0.1, largest_eigenvalue=9.0).steps
    9
    """
    _check(risk, theta, steps, lr=lr, gradient_norm=gradient_norm, largest_eigenvalue=largest_eigenvalue)
    size = curvature = math.nan
    look = 0
    for step in range(steps + 1):
        gradient = risk.gradient(theta)
        size = float(lengths(gradient))
        if not math.isfinite(size):
            risk.loss(theta)  # which names the sample
            raise NonFiniteLossError(f"the gradient is not finite after {step} steps of lr = {lr:g}: lower it")
        last = step == steps
        if (size < gradient_norm and step >= look) or last:
            curvature = float(leading_hessian_pairs(risk, theta, 1)[0][0])
            if last or curvature < largest_eigenvalue:
                break
            look = step + LOOK_AGAIN
        theta = theta - lr * gradient
    rests = size < gradient_norm and curvature < largest_eigenvalue
    return Settled(theta, float(risk.loss(theta)), size, curvature, step, rests)


@dataclass(frozen=True)
class Quenched:
    """An iterate brought down to a level of the loss.

    Attributes:
        theta: (D,).
        loss: L there: the level, if that was reached from above.
        steps: taken.
        reached: whether the loss is at the level or below; if not, the steps ran out.
    """

    theta: Tensor
    loss: float
    steps: int
    reached: bool


def quench(risk: EmpiricalRisk, theta: Tensor, *, level: float, lr: float, steps: int) -> Quenched:
    """Gradient descent until L = ``level``: the last step is shortened so that it ends there.

    A step that would end above the last few, and steps that bring nothing, are halved, so that the descent stays in
    the basin it begins in: at a fixed rate it would leave a basin of λ₁ > 2/η, and be flattened by that. Only a
    step so long that it hops over a hill into lower ground can leave. An iterate at the level or below is not
    moved.

    Args:
        risk: L.
        theta: where to begin, (D,).
        level: of the loss.
        lr: the longest step, per unit of the gradient.
        steps: at most.

    Raises:
        ValueError: a rate that is not positive, steps < 0, a level that is not finite; replicas.
        NonFiniteLossError: the loss is not finite.

    >>> import noisescape as ns
    >>> bowl = ns.landscapes.quadratic(torch.eye(1), torch.zeros(2, 1))
    >>> quench(bowl, torch.ones(1), level=0.125, lr=0.1, steps=99).theta
    tensor([0.5000])
    """
    _check(risk, theta, steps, lr=lr)
    check_real("level", level)
    level = float(level)
    slack = SAME_LEVEL * abs(level)
    loss, gradient = _loss_and_gradient(risk, theta)
    if not math.isfinite(loss):
        risk.loss(theta)  # which names the sample
    recent, least, idle = deque([loss], RECENT), loss, 0
    rate, step = lr, 0
    while loss > level + slack and step < steps and rate > SHORTEST * lr and bool(gradient.any()):
        trial = theta - rate * gradient
        below, next_gradient = _loss_and_gradient(risk, trial)
        if not below <= max(recent):
            rate /= 2
            continue
        step += 1
        if below < level - slack:
            theta, loss = _on_segment(risk, theta, trial, level)
            break
        theta, loss, gradient = trial, below, next_gradient
        recent.append(loss)
        least, idle = (loss, 0) if loss < least else (least, idle + 1)
        rate = min(lr, GROWTH * rate) if idle < RECENT else rate / 2
        idle %= RECENT
    return Quenched(theta, loss, step, loss <= level + slack)


def at_matched_loss(
    risk: EmpiricalRisk, thetas: Mapping[str, Tensor], *, lr: float, steps: int, level: float | None = None
) -> dict[str, Quenched]:
    """These iterates, each quenched to one level of the loss: by default the lowest of theirs.

    Args:
        risk: L.
        thetas: by name, each (D,).
        lr: the longest step of the quench.
        steps: at most, each.
        level: of the loss.

    Raises:
        ValueError: no iterates; as :func:`quench`.
        NonFiniteLossError: the loss of one is not finite; the message names it.
    """
    if not isinstance(thetas, Mapping):
        raise InvalidTypeError(f"thetas must be iterates by name, {{'sgd': theta}}, not {kind_of(thetas)}")
    if not thetas:
        raise InvalidValueError("there are no iterates to match: thetas is empty")
    losses = [_finite_loss(risk, theta, f"the iterate '{name}'") for name, theta in thetas.items()]
    level = min(losses) if level is None else level
    return {name: quench(risk, theta, level=level, lr=lr, steps=steps) for name, theta in thetas.items()}


@dataclass(frozen=True)
class LossAlong:
    """The loss along a path of straight segments.

    Attributes:
        position: share of the path's length, from 0 to 1, (P,).
        loss: L there, float64, (P,); infinite values as they are.
        distance: length of the path from the knot expanded about, else from its start, in units of θ, (P,);
            negative before that knot.
        quadratic: L(θ₀) + ḡᵀv + ½vᵀHv for v = θ − θ₀ there, θ₀ that knot, (P,); None where none was asked for.
    """

    position: Tensor
    loss: Tensor
    distance: Tensor
    quadratic: Tensor | None = None

    def plot(self) -> Figure:
        """The loss against the distance, and the quadratic, dashed, as far as the loss goes."""
        from noisescape.pictures import Picture  # matplotlib is slow to import

        figure = Picture(6.4, 3.6)
        axis = figure.subplots()
        axis.plot(self.distance, self.loss, color="#762a83", label="L")
        axis.set(xlabel="distance along the path", ylabel="L")
        if self.quadratic is not None:
            seen = self.loss[self.loss.isfinite()]
            if len(seen) and seen.min() < seen.max():  # far from θ₀ the quadratic may be beyond all measure
                margin = 0.05 * float(seen.max() - seen.min())
                axis.set_ylim(float(seen.min()) - margin, float(seen.max()) + margin)
            axis.plot(self.distance, self.quadratic, "--", color="#1b7837", label="L(θ₀) + ḡᵀv + ½vᵀHv")
            axis.axvline(0, color="#444444", linewidth=0.8, linestyle=":")
            axis.legend()
        return figure


def loss_along(risk: EmpiricalRisk, path: Tensor, *, points: int = 41, about: int | None = None) -> LossAlong:
    """L at evenly spaced points of every segment of a path, and its second-order expansion about a knot.

    From one iterate to another the path is ``torch.stack([start, end])``; through a minimum θ₀ along a unit vector
    u it is ``torch.stack([θ₀ - r*u, θ₀, θ₀ + r*u])`` with ``about=1``.

    Args:
        risk: L.
        path: its knots, (K, D), K ≥ 2.
        points: of a segment, its ends included.
        about: index of the knot θ₀ to expand L about, L(θ₀) + ḡᵀv + ½vᵀHv; it costs a gradient and K products Hv.

    Raises:
        TypeError: points or about that are no int.
        ValueError: fewer than two knots or points; knots that are no θ of the risk; no such knot to expand about.
        NonFiniteLossError: the loss is not finite at the knot expanded about.
        FailedError: the model has no second derivative, and an expansion was asked for.

    >>> import noisescape as ns
    >>> wells = ns.EmpiricalRisk.from_losses(lambda x: (x.square() - 1).square(), torch.ones(1))
    >>> found = loss_along(wells, torch.tensor([[0.5], [1.0], [1.5]]), points=2, about=1)
    >>> found.distance.tolist(), found.loss.tolist(), found.quadratic.tolist()
    ([-0.5, 0.0, 0.5], [0.5625, 0.0, 1.5625], [1.0, 0.0, 1.0])
    """
    if not isinstance(path, Tensor):
        raise InvalidTypeError(f"path must be a tensor of knots, (K, D), not {type(path).__name__}")
    if path.ndim != 2 or len(path) < 2:
        raise InvalidValueError(f"a path has at least two knots, (K, D), not shape {tuple(path.shape)}")
    check_whole("points", points, 2)
    if about is not None:
        check_whole("about", about, -len(path), len(path) - 1)
    _check_theta(risk, path[0], "each knot")
    expansion = None if about is None else _expansion(risk, path, about)
    lengths = (path[1:] - path[:-1]).double().norm(dim=1).cpu()
    before = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    shares = torch.linspace(0, 1, points, dtype=torch.float64)
    distances, losses, quadratic = [], [], []
    for knot, (start, end) in enumerate(pairwise(path)):
        for share in shares[min(knot, 1) :].tolist():  # a knot is the end of one segment and the start of the next
            distances.append(float(before[knot] + share * lengths[knot]))
            losses.append(_loss(risk, torch.lerp(start, end, share)))
            if expansion is not None:
                quadratic.append(expansion(knot, share))
    distance = torch.tensor(distances, dtype=torch.float64)
    whole = float(before[-1])
    return LossAlong(
        distance / whole if whole else distance,
        torch.tensor(losses, dtype=torch.float64),
        distance if about is None else distance - before[about],
        None if expansion is None else torch.tensor(quadratic, dtype=torch.float64),
    )


def barrier(risk: EmpiricalRisk, start: Tensor, end: Tensor, *, points: int = 41) -> float:
    """Height of the straight segment between two iterates over the higher of its ends, in units of the loss; ≥ 0.

    0 within a convex basin. An upper bound of the lowest pass between the two: a curved path may be lower.

    Args:
        risk: L.
        start: (D,).
        end: (D,).
        points: at which the loss is evaluated, its ends included; the highest is then refined between its
            neighbours. A hill narrower than the distance of two is missed.

    Raises:
        ValueError: fewer than three points, between which there is nothing; ends that are no θ of the risk.
        NonFiniteLossError: the loss is not finite at an end. In between it may be: the barrier is infinite.

    >>> import noisescape as ns
    >>> wells = ns.EmpiricalRisk.from_losses(lambda x: (x.square() - 1).square(), torch.ones(1))
    >>> round(barrier(wells, torch.tensor([-1.0]), torch.tensor([1.0])), 6)
    1.0
    """
    from scipy.optimize import minimize_scalar  # slow to import, and few need it

    check_whole("points", points, 3)  # so that one lies between the ends
    ends = max(_finite_loss(risk, theta, name) for theta, name in ((start, "start"), (end, "end")))
    found = loss_along(risk, torch.stack([start, end]), points=points)
    losses = found.loss.nan_to_num(torch.inf, torch.inf)
    top = int(losses.argmax())
    height = float(losses[top])
    if 0 < top < points - 1 and height < torch.inf:
        low, high = (float(found.position[near]) for near in (top - 1, top + 1))
        refined = minimize_scalar(
            lambda share: -_loss(risk, torch.lerp(start, end, float(share))), bounds=(low, high), method="bounded"
        )
        height = max(height, -float(refined.fun))
    return max(0.0, height - ends)


def _on_segment(risk: EmpiricalRisk, above: Tensor, below: Tensor, level: float) -> tuple[Tensor, float]:
    """The point of a segment that crosses a level where the loss is that level, by bisection."""
    low, high = 0.0, 1.0
    theta, loss = below, _loss(risk, below)
    for _ in range(60):
        middle = (low + high) / 2
        theta = torch.lerp(above, below, middle)
        loss = _loss(risk, theta)
        if abs(loss - level) <= SAME_LEVEL * abs(level):
            break
        low, high = (middle, high) if loss > level else (low, middle)
    return theta, loss


def _expansion(risk: EmpiricalRisk, path: Tensor, about: int) -> Callable[[int, float], float]:
    """L to second order about a knot: of a segment's number, and the share of it that is behind, its value."""
    risk, centre = in_operator_precision(risk, path[about])
    loss, gradient = risk.loss(centre).double().cpu(), risk.gradient(centre)
    away = path.to(centre.dtype) - centre
    # v is linear along a segment, so that the knots' own products say all
    slopes = inner_products(away, gradient[:, None])[:, 0].double().cpu()
    forms = inner_products(away, risk.hessian(centre) @ away.T).double().cpu()

    def value(segment: int, share: float) -> float:
        weights = torch.tensor([1 - share, share], dtype=torch.float64)
        ends = slice(segment, segment + 2)
        return float(loss + weights @ slopes[ends] + 0.5 * weights @ forms[ends, ends] @ weights)

    return value


def _loss(risk: EmpiricalRisk, theta: Tensor) -> float:
    return float(unchecked_losses(risk, theta).double().mean())


def _loss_and_gradient(risk: EmpiricalRisk, theta: Tensor) -> tuple[float, Tensor]:
    loss, gradient = loss_and_gradient(risk, theta)
    return float(loss), gradient


def _finite_loss(risk: EmpiricalRisk, theta: Tensor, name: str) -> float:
    """L at one of several iterates, which the error names."""
    _check_theta(risk, theta, name)
    try:
        return float(risk.loss(theta).double())
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{name}: {error}") from error


def _check(risk: EmpiricalRisk, theta: Tensor, steps: int, **positive: float) -> None:
    _check_theta(risk, theta)
    check_whole("steps", steps, 0)
    for name, value in positive.items():
        check_positive(name, value)


def _check_theta(risk: EmpiricalRisk, theta: Tensor, name: str = "θ") -> None:
    check_risk(risk)
    check_theta(theta, risk.dimension, risk.dtype, risk.device, replicas=False, name=name)
