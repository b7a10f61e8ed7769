"""``python -m benchmarks.coverage``: do the 95 % intervals of Tr(AB) cover, is it unbiased, and what does it cost?

Every problem has a dense oracle and is estimated with thousands of seeds, with a control variate and without. It
takes some minutes and runs in the library's own environment. Written to ``results/coverage.json``.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import noisescape as ns
from benchmarks import harness
from noisescape.linops import DenseOperator, DiagonalOperator, LowRankOperator, SymmetricOperator, product_trace
from noisescape.risk.passes import dense_hessian

SEEDS = 3000
MORE_SEEDS = {"network at a minimum": 12_000}
"""What the control is for: its bias to a hundredth of a per cent."""
BATCH_SIZE = 20
F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """Tr(AB) with its exact value.

    Attributes:
        name: what it is.
        left: A.
        right: B.
        control: Ã, or none.
        exact: Tr(AB), from dense matrices.
        rtol: asked for.
    """

    name: str
    left: SymmetricOperator
    right: SymmetricOperator
    control: SymmetricOperator | None
    exact: float
    rtol: float


def problems() -> Iterator[Problem]:
    """Networks near a minimum and away from one, then matrices whose gap is chosen."""
    for place, steps in (("at a minimum", 400), ("far from one", 0)):
        risk, theta = network(steps)
        hessian, noise = risk.hessian(theta), risk.noise_covariance(theta, BATCH_SIZE)
        exact = float((dense_hessian(risk, theta) * noise.dense()).sum())
        for control in (risk.gauss_newton(theta), None):
            yield Problem(f"network {place}", hessian, noise, control, exact, 0.01)

    size = 200
    spectrum = torch.arange(1, size + 1, dtype=F64).pow(-0.7)
    spectrum[1::3] *= -0.2
    left = symmetric(spectrum, seed=1)
    factor = normal(size, 120, seed=2) * torch.arange(1, 121, dtype=F64).pow(-0.5)
    noise = symmetric(normal(size, seed=4), seed=3)
    diagonal = torch.arange(1, size + 1, dtype=F64).pow(-0.5)
    rights: dict[str, Callable[[], SymmetricOperator]] = {
        "factored": lambda: LowRankOperator(factor),
        "drawn from": lambda: DiagonalOperator(diagonal),
    }
    for kind, right in rights.items():
        exact = float((left * right().dense()).sum())
        # in units of the tolerance, a probe's standard deviation of the gap is about √2‖FᵀEF‖/Tr(AB)
        root = factor if kind == "factored" else diagonal.sqrt().diag()
        unit = 0.02 * exact / (math.sqrt(2) * float((root.T @ noise @ root).norm()))
        for gap in (None, 0.02, 0.3, 1.0, 100.0):
            control = None if gap is None else DenseOperator(left + gap * unit * noise, name="control")
            name = f"matrices, B {kind}" + ("" if gap is None else f", gap {gap:g} tolerances")
            yield Problem(name, DenseOperator(left), right(), control, exact, 0.02)
    indefinite = DenseOperator(symmetric(spectrum.flip(0).abs() + 0.1, seed=5), name="other matrix")
    exact = float((left * indefinite.dense()).sum())
    yield Problem("matrices, B neither", DenseOperator(left), indefinite, None, exact, 0.05)


def network(steps: int) -> tuple[ns.EmpiricalRisk, Tensor]:
    """163 parameters, 300 samples of another network of the same kind with some noise; fitted by L-BFGS."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        teacher, model = (nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(F64) for _ in range(2))
        inputs = torch.randn(300, 6, dtype=F64)
        targets = 2 * teacher(inputs).detach() + 0.02 * torch.randn(300, 3, dtype=F64)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    if steps:
        optimiser.step(closure)
    risk = ns.EmpiricalRisk(model, nn.functional.mse_loss, (inputs, targets))
    return risk, risk.parameters()


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def symmetric(spectrum: Tensor, seed: int) -> Tensor:
    """A matrix of that spectrum in random axes."""
    axes = torch.linalg.qr(normal(len(spectrum), len(spectrum), seed=seed)).Q
    matrix = axes * spectrum @ axes.T
    return (matrix + matrix.T) / 2


def measured(problem: Problem, seeds: int = SEEDS) -> dict[str, Any]:
    """Coverage, bias and cost over that many seeds."""
    before = problem.left.products
    label = f"{problem.name}, {'no ' if problem.control is None else ''}control"
    found = [
        product_trace(problem.left, problem.right, control=problem.control, rtol=problem.rtol, seed=seed)
        for seed in track(range(seeds), label)
    ]
    errors = torch.tensor([one.value - problem.exact for one in found], dtype=F64) / abs(problem.exact)
    claimed = torch.tensor([one.relative_stderr for one in found], dtype=F64)
    covered = {
        level: sum(low <= problem.exact <= high for low, high in (one.interval(level) for one in found)) / seeds
        for level in (0.95, 0.5)
    }
    return {
        "problem": problem.name,
        "control": problem.control is not None,
        "seeds": seeds,
        "rtol": problem.rtol,
        "coverage_95": covered[0.95],
        "coverage_95_stderr": math.sqrt(covered[0.95] * (1 - covered[0.95]) / seeds),
        "coverage_50": covered[0.5],
        "relative_bias": float(errors.mean()),
        "relative_bias_stderr": float(errors.std()) / math.sqrt(seeds),
        "relative_rmse": float(errors.square().mean().sqrt()),
        "claimed_stderr": float(claimed.square().mean().sqrt()),
        "products": statistics.mean(one.cost for one in found),
        "products_of_A": (problem.left.products - before) / seeds,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """For the terminal."""
    found = Table("problem", "control", "95 %", "50 %", "bias, %", "RMSE, %", "products", "of A")
    for row in rows:
        found.add_row(
            row["problem"],
            "yes" if row["control"] else "no",
            f"{row['coverage_95']:.1%}",
            f"{row['coverage_50']:.1%}",
            f"{row['relative_bias']:+.3%} ± {row['relative_bias_stderr']:.3%}",
            f"{row['relative_rmse']:.2%}",
            f"{row['products']:.1f}",
            f"{row['products_of_A']:.1f}",
        )
    return found


def run(seeds: int = SEEDS) -> harness.Outcome:
    """All problems."""
    outcome = harness.Outcome()
    rows = [measured(problem, max(seeds, MORE_SEEDS.get(problem.name, 0))) for problem in problems()]
    outcome.figures = {"product_trace": rows}
    return outcome


if __name__ == "__main__":
    begun = time.perf_counter()
    result = run()
    Console(width=140).print(table(result.figures["product_trace"]))
    Console().print(harness.write("coverage", result, time.perf_counter() - begun))
