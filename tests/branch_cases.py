"""What branches are trained from in tests: quadratics in closed form, and small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cases import F64, classes, normal


class Bowl(nn.Module):
    """½(w − x)ᵀH(w − x), H diagonal: gradient noise H Cov(x) H, Hessian H."""

    def __init__(self, curvature: Tensor, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())
        self.register_buffer("curvature", curvature)

    def forward(self, x: Tensor) -> Tensor:
        return self.curvature.sqrt() * (self.w - x)

    @property
    def excess(self) -> float:
        """½wᵀHw, the expected loss less its least value, for x of mean zero."""
        return float(0.5 * (self.curvature * self.w.detach().square()).sum())


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


class Drawn(Dataset[Any]):
    """As many samples as you like, each drawn afresh from N(0, spread²)."""

    def __init__(self, count: int, spread: Tensor) -> None:
        self.count = count
        self.spread = spread

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.spread * torch.randn(len(self.spread), dtype=F64), torch.zeros(len(self.spread), dtype=F64)


def expected_excess(bowl: Bowl, spread: Tensor, *, batch_size: int, lr: float, steps: int) -> float:
    """E ½wᵀHw after so many steps: the start shrinks, the noise adds up."""
    shrink = (1 - lr * bowl.curvature) ** 2
    noise = (bowl.curvature * spread).square() / batch_size
    start = bowl.w.detach().square()
    squares = start * shrink**steps + lr**2 * noise * sum(shrink**each for each in range(steps))
    return float(0.5 * (bowl.curvature * squares).sum())


class Lively(nn.Module):
    """With BatchNorm, whose buffers move, and dropout, which draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8, dtype=F64),
            nn.BatchNorm1d(8, dtype=F64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(8, 3, dtype=F64),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def lively() -> Lively:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Lively()


def lively_data(count: int = 48) -> tuple[Tensor, Tensor]:
    return normal(count, 4, seed=1), classes(count, of=3, seed=2)


def train_a_little(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor]) -> None:
    """So that momentum, moments and running statistics are something."""
    for part in range(3):
        inputs, targets = (each[8 * part : 8 * part + 8] for each in data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
