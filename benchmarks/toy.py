"""Row 3: replica-steps a second on the two-dimensional toy, against the loop of the published code.

That code treats one replica at a time and calls backward once for every data point and step, for the gradient and
for the covariance of the per-point gradients; the noise's factor comes from an eigendecomposition of the
covariance, or of the Hessian obtained by differentiating each component of the gradient. Its loop is written here
anew from that description.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import noisescape as ns
from benchmarks.harness import Outcome, interleaved
from noisescape.experiments.protocols.toy_2d import toy_dynamics
from noisescape.theory.landscapes import SHARP_MINIMUM, toy_2d, toy_points

REPLICAS = 1000
STEPS = 20
LOOP_STEPS = 3
POINTS = 100
LR = 0.005
UPDATE_TRACE = 0.01
TARGET = 2000


def run() -> Outcome:
    """Every dynamics of the toy: 1,000 replicas together, and one by the loop."""
    outcome = Outcome()
    points = toy_points(REPLICAS, POINTS, torch.Generator().manual_seed(0), torch.float64)
    risk, single = toy_2d(points), points[0]
    start = torch.tensor(SHARP_MINIMUM, dtype=torch.float64).expand(REPLICAS, 2).contiguous()
    weights = torch.tensor([0.9, 1.05], dtype=torch.float64)
    gradient, covariance = per_point(single, weights)
    alone = toy_2d(single)
    outcome.agree("gradient", gradient, alone.gradient(weights), 1e-12)
    outcome.agree("covariance", covariance, alone.noise_covariance(weights, 1).dense(), 1e-12)
    outcome.agree("Hessian", hessian(single, weights), alone.hessian(weights).dense(), 1e-12)

    trace = UPDATE_TRACE / LR**2
    total: dict[str, list[float]] = {"noisescape": [0.0] * 5, "the published loop": [0.0] * 5}
    for name, dynamics in toy_dynamics(trace).items():
        shape = SHAPES[name]

        def ours(dynamics: ns.Dynamics = dynamics) -> None:
            ns.simulate(risk, dynamics, start, lr=LR, steps=STEPS, record={}, progress=False)

        def theirs(shape: Shape = shape) -> None:
            published_loop(single, shape, LOOP_STEPS)

        timed = interleaved({"noisescape": ours, "the published loop": theirs}, 5)
        timed["noisescape"] = [each / (REPLICAS * STEPS) for each in timed["noisescape"]]
        timed["the published loop"] = [each / LOOP_STEPS for each in timed["the published loop"]]
        outcome.seconds |= {f"{side}: {name}": each for side, each in timed.items()}
        for side, each in timed.items():
            total[side] = [one + other for one, other in zip(total[side], each, strict=True)]
        rate = 1 / sorted(timed["noisescape"])[2]
        outcome.compare(
            f"toy, {name}",
            f"noisescape: {name}",
            f"the published loop: {name}",
            better="higher",
            note=f"{rate:,.0f} replica-steps a second",
        )
    outcome.seconds |= total
    outcome.compare("toy, all dynamics", "noisescape", "the published loop", better="higher", target=TARGET)
    return outcome


# ---------------------------------------------------------------------- the published algorithm


def loss(point: Tensor, weights: Tensor) -> Tensor:
    """ℓ(w; x) of one point."""
    away = weights - point - 1
    u, v = (away[0] - away[1]) / 2**0.5, (away[0] + away[1]) / 2**0.5
    return torch.minimum(10 * u**2 + 100 * v**2, ((away + 2) ** 2).sum())


def per_point(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the gradients, one backward pass a point."""
    rows = []
    for point in points:
        leaf = weights.clone().requires_grad_()
        loss(point, leaf).backward()
        rows.append(leaf.grad)
    gradients = torch.stack([row for row in rows if row is not None])
    centred = gradients - gradients.mean(0)
    return gradients.mean(0), centred.T @ centred / len(points)


def hessian(points: Tensor, weights: Tensor) -> Tensor:
    """H, a backward pass a component of each point's gradient."""
    total = torch.zeros(2, 2, dtype=weights.dtype)
    for point in points:
        leaf = weights.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point, leaf), leaf, create_graph=True)
        total += torch.stack([torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in gradient])
    return total / len(points)


def leading(matrix: Tensor) -> Tensor:
    """Its first eigenpair's part."""
    values, vectors = torch.linalg.eigh(matrix)
    return values[-1].clamp_min(0) * torch.outer(vectors[:, -1], vectors[:, -1])


Shape = Callable[[Tensor, Tensor, Tensor], Tensor | None]
SHAPES: dict[str, Shape] = {
    "gd": lambda _points, _weights, _covariance: None,
    "gld-constant": lambda _points, weights, _covariance: torch.eye(2, dtype=weights.dtype),
    "gld-diagonal": lambda _points, _weights, covariance: covariance.diag().diag(),
    "gld-leading": lambda _points, _weights, covariance: covariance,
    "gld-hessian": lambda points, weights, _covariance: hessian(points, weights),
    "gld-top-eigenvector": lambda points, weights, _covariance: leading(hessian(points, weights)),
    "gld-leading-1": lambda _points, _weights, covariance: leading(covariance),
}


def published_loop(points: Tensor, shape: Shape, steps: int) -> Tensor:
    """One replica; the gradients of a step's points serve its mean and its covariance both."""
    weights = torch.tensor(SHARP_MINIMUM, dtype=torch.float64)
    for _ in range(steps):
        gradient, of_gradients = per_point(points, weights)
        covariance = shape(points, weights, of_gradients)
        weights = weights - LR * gradient
        if covariance is not None:
            values, vectors = torch.linalg.eigh(covariance * (UPDATE_TRACE / covariance.trace()))
            weights = weights + vectors @ (values.clamp_min(0).sqrt() * torch.randn(2, dtype=weights.dtype))
    return weights
