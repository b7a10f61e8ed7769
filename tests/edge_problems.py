"""Losses whose H and C are known by dense algebra, and are awkward: for what intervals claim at the edges.

ℓ_n(θ) = ½s_n(x_nᵀθ)² + b_n x_nᵀθ at θ = 0, where g_n = b_n x_n and H = Σ s_n x_n x_nᵀ/N.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import noisescape as ns
from cases import F64, normal

N, D = 80, 64
ONE, ZERO = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return targets[:, 1] * outputs[:, 0].square() / 2 + targets[:, 0] * outputs[:, 0]


@dataclass(frozen=True)
class Problem:
    """Samples x (N, D), their curvatures s (N,) and slopes b (N,)."""

    x: Tensor
    s: Tensor
    b: Tensor

    @cached_property
    def risk(self) -> ns.EmpiricalRisk:
        model = nn.Linear(self.x.shape[1], 1, bias=False).to(F64)
        nn.init.zeros_(model.weight)
        return ns.EmpiricalRisk(model, _loss, (self.x, torch.stack([self.b, self.s], dim=1)))

    @cached_property
    def hessian(self) -> Tensor:
        return self.x.T @ (self.s[:, None] * self.x) / len(self.x)

    @cached_property
    def gradient(self) -> Tensor:
        return (self.b[:, None] * self.x).mean(0)

    @cached_property
    def factor(self) -> Tensor:
        """F with C = FFᵀ, (D, N)."""
        return (self.b[:, None] * self.x - self.gradient).T / math.sqrt(len(self.x))

    @cached_property
    def noise(self) -> Tensor:
        return self.factor @ self.factor.T

    @property
    def dimension(self) -> int:
        return self.x.shape[1]

    @property
    def samples(self) -> int:
        return len(self.x)


def _ordinary(samples: int = N, dimension: int = D) -> Problem:
    """H of full rank, normal gradients."""
    return Problem(
        normal(N, D, seed=1)[:samples, :dimension],
        (normal(N, seed=2).abs() + 0.1)[:samples],
        normal(N, seed=3)[:samples],
    )


def _students(seed: int) -> Tensor:
    """Draws of Student's law with 2 degrees of freedom, which has no variance."""
    z = normal(N, 3, seed=seed)
    return z[:, 0] / z[:, 1:].square().mean(1).sqrt()


def _on_a_line(chosen: Tensor) -> Problem:
    """The ordinary one, but for x of the chosen samples: all along one direction."""
    ordinary = _ordinary()
    line = normal(N, seed=7)[:, None] * normal(D, seed=6)
    return Problem(torch.where(chosen[:, None], line, ordinary.x), ordinary.s, ordinary.b)


def _cancelling() -> Problem:
    """TrH and Tr(HC) are a thousandth of what they would be without the signs of s."""
    ordinary, s = _ordinary(), normal(N, seed=8)
    lengths = ordinary.x.square().sum(1)
    noisy = ((ordinary.x @ ordinary.noise) * ordinary.x).sum(1)
    both = torch.stack([lengths, noisy])
    s[:2] = torch.linalg.solve(both[:, :2], 1e-3 * both @ s.abs() - both[:, 2:] @ s[2:])
    return Problem(ordinary.x, s, ordinary.b)


def _with(problem: Problem, *, x: Tensor = ONE, s: Tensor = ONE, b: Tensor = ONE) -> Problem:
    return Problem(problem.x * x, problem.s * s, problem.b * b)


EVEN = torch.arange(N) % 2 == 0
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ordinary": _ordinary,
    "heavy tails": lambda: Problem(normal(N, D, seed=1), _students(4).abs(), _students(5)),
    "rank-one C": lambda: _with(_on_a_line(~EVEN), s=EVEN.to(F64), b=(~EVEN).to(F64)),
    "rank-one H": lambda: _with(_on_a_line(~EVEN), s=(~EVEN).to(F64), b=EVEN.to(F64)),
    "one sample curves": lambda: _with(_ordinary(), s=(torch.arange(N) == 7).to(F64)),
    "indefinite H": lambda: Problem(normal(N, D, seed=1), normal(N, seed=8), normal(N, seed=3)),
    "cancelling traces": _cancelling,
    "D = 1": lambda: _ordinary(dimension=1),
    "N = 2": lambda: _ordinary(samples=2),
    "N = 2, D = 1": lambda: _ordinary(samples=2, dimension=1),
    "N = 3": lambda: _ordinary(samples=3),
    "H = 0": lambda: _with(_ordinary(), s=ZERO),
    "C = 0": lambda: _with(_ordinary(), b=ZERO),
    "all zero": lambda: _with(_ordinary(), x=ZERO),
    "condition 1e8": lambda: _with(_ordinary(), x=torch.logspace(0, -4, D, dtype=F64)),
}
