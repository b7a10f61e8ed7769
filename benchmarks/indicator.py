"""Row 1: Tr(HΣ) to 1 %, at a minimum of the FashionMNIST LeNet and elsewhere, against what else there is.

Accuracy and time are found apart. Every estimator here applies H, and its control, to vectors in the span of the
per-sample gradients only, so these on that span, N products in all, give the exact value and the error of every
estimator over hundreds of seeds at the price of small matrix products. Each side's smallest budget that reaches 1 %
is then run for real, timed in turns.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import curvlinops
import hessian_eigenthings as he
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import noisescape as ns
from benchmarks.harness import Outcome, interleaved
from benchmarks.pair_table import PairedColumns, PairedCurvature
from benchmarks.problems import BATCH_SIZE, Problem, lenet_at_minimum, lenet_early
from noisescape.linops import FunctionOperator, SymmetricOperator

RTOL = 0.01
SEEDS = 500
REPEATS = 3
SHORT_REPEATS = 20
FEWER_REPEATS = 5
DENSE_COLUMNS = 24
TIMED_COLUMNS = 4
"""Products of which a rival's time is extrapolated, where it cannot be run whole."""
CPU = torch.device("cpu")
MOST_TIMED = 1000
"""Products beyond which a rival is not run: it would take hours."""
OURS = "noisescape, to 1 %"


def run() -> Iterator[Outcome]:
    """Exact value, each side's budget for 1 %, coverage and times, at a minimum and away from one."""
    outcome = Outcome()
    minimum = lenet_at_minimum()
    outcome.figures |= at_place(
        outcome, "", minimum, all_rivals, seeds=SEEDS, rival_seeds=RIVAL_SEEDS, repeats=SHORT_REPEATS, target=30
    )
    dense = "the dense way"
    outcome.seconds[dense] = dense_way(minimum)
    outcome.compare(
        "Tr(HΣ) to 1 %",
        OURS,
        dense,
        better="higher",
        target=200,
        note=f"{minimum.risk.dimension:,} Hessian products and D × D matrices; extrapolated from "
        f"{DENSE_COLUMNS} columns",
    )
    yield outcome
    name = "early in its training"
    early = at_place(
        outcome,
        f" {name}",
        lenet_early(),
        all_rivals,
        seeds=SEEDS,
        rival_seeds=RIVAL_SEEDS,
        repeats=FEWER_REPEATS,
        target=60,
    )
    outcome.figures["elsewhere"] = {name: early}
    yield outcome


def at_place(
    outcome: Outcome,
    place: str,
    problem: Problem,
    rivals_of: Callable[[Problem, Chain, float, int], Rivals],
    *,
    seeds: int,
    rival_seeds: int,
    repeats: int,
    target: float,
) -> dict[str, Any]:
    """Everything but the dense way, for one problem; rows and seconds of it have the place's name."""
    risk, theta = problem.risk, problem.theta
    sigma = risk.noise_covariance(theta, BATCH_SIZE)
    restricted, control, exact = on_the_span(risk, theta)
    gradient = risk.gradient(theta)
    mean_part = float(gradient @ (risk.hessian(theta) @ gradient))
    pairs = table_of_pairs(risk, theta)
    if pairs is None:
        found = [
            ns.product_trace(restricted, sigma, control=control, rtol=RTOL, seed=seed) for seed in range(seeds)
        ]
    else:  # the same numbers, whatever the vectors are that they come of
        outcome.agree(f"exact, by pairs{place}", float(pairs.mean()), exact, 1e-3)
        both = PairedCurvature(pairs), PairedColumns(len(pairs))
        found = [ns.product_trace(*both, rtol=RTOL, seed=seed) for seed in range(seeds)]
    values = torch.tensor([estimate.value for estimate in found], dtype=torch.float64)
    covered = [low <= exact <= high for low, high in (estimate.interval() for estimate in found)]
    accuracy = {
        "relative_rmse": relative_rmse(values, exact),
        "relative_bias": float(values.mean() / exact - 1),
        "coverage": sum(covered) / seeds,
        "products and forms": statistics.mean(estimate.cost for estimate in found),
        "stderr": statistics.median(estimate.relative_stderr for estimate in found),
    }
    rows = risk.per_sample_gradients(theta)
    chain = Chain(lambda block: restricted @ (rows.T @ (rows @ block) / len(rows)), restricted.size)
    rivals = rivals_of(problem, chain, exact * BATCH_SIZE + mean_part, rival_seeds)
    numbers = itertools.count()
    sides: dict[str, Callable[[], float]] = {
        OURS: lambda: (  # another seed each time: some take more probes than others
            ns.product_trace(
                risk.hessian(theta),
                risk.noise_covariance(theta, BATCH_SIZE),
                control=risk.gauss_newton(theta),
                rtol=RTOL,
                seed=next(numbers),
            ).value
        ),
        **rivals.whole,
    }
    kept: dict[str, float] = {}

    def keeping(side: str, estimate: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            kept[side] = estimate()

        return call

    # the long runs are their own check: minutes each, no run for the check alone
    whole = {side: keeping(side, estimate) for side, estimate in sides.items()}
    clock = time.process_time
    timed = interleaved(
        {**whole, "gradient": problem.step_cost}, REPEATS if not place else 1, warm_up=0, clock=clock
    )
    for side, value in kept.items():
        outcome.agree(f"{side}{place}", value, exact, 0.05)
    short = interleaved({OURS: whole[OURS], "gradient": problem.step_cost}, repeats, clock=clock)
    for side, each in short.items():
        timed[side] = each + timed[side][1:]  # the first call of all is a warm-up
    for side, products in rivals.in_part.items():
        part = interleaved({side: products}, repeats, clock=clock)[side]
        timed[side] = [each * rivals.budgets[side] / TIMED_COLUMNS for each in part]
    outcome.seconds |= {f"{side}{place}": each for side, each in timed.items()}
    work = f"Tr(HΣ) to 1 %{place}"
    outcome.compare(
        work,
        f"{OURS}{place}",
        f"gradient{place}",
        target=target,
        note=f"RMSE {accuracy['relative_rmse']:.2%}, coverage {accuracy['coverage']:.1%} over {seeds} seeds",
    )
    others = [*rivals.whole, *rivals.in_part]  # none, where none reaches 1 % in time
    best = min(others, key=lambda side: statistics.median(timed[side]), default=None)
    for side in others:
        bound = 4 if side == best else None
        note = f"{rivals.budgets[side]} products each"
        if side in rivals.in_part:
            note += f", extrapolated from {TIMED_COLUMNS}"
        outcome.compare(work, f"{OURS}{place}", f"{side}{place}", better="higher", target=bound, note=note)
    return {
        "exact": exact,
        "loss": float(risk.loss(theta)),
        "gradient_norm": float(torch.linalg.vector_norm(gradient)),
        "rtol": RTOL,
        "seeds": seeds,
        "noisescape": accuracy,
        "rivals": {"error against products": rivals.curves, "budgets": rivals.budgets},
    }


class OnTheSpan(FunctionOperator):
    """A matrix known on the span of an orthonormal basis, by its products with that."""

    def __init__(self, matrix: SymmetricOperator, basis: Tensor) -> None:
        self.image = image = torch.cat([matrix @ block for block in basis.split(8, dim=1)], dim=1)
        super().__init__(
            lambda block: image @ (basis.T @ block), len(basis), dtype=matrix.dtype, device=CPU, name=matrix.name
        )


def on_the_span(risk: ns.EmpiricalRisk, theta: Tensor) -> tuple[OnTheSpan, OnTheSpan, float]:
    """H and its control, the Gauss–Newton matrix, on the span of the gradients, and the exact Tr(HΣ)."""
    rows = risk.per_sample_gradients(theta)
    basis = torch.linalg.svd(rows.double(), full_matrices=False).Vh.T.float()
    hessian, control = OnTheSpan(risk.hessian(theta), basis), OnTheSpan(risk.gauss_newton(theta), basis)
    inner = (rows - rows.mean(0)).double() @ basis.double()
    exact = float(((inner @ (basis.double().T @ hessian.image.double())) * inner).sum())
    return hessian, control, exact / (len(rows) * BATCH_SIZE)


def table_of_pairs(risk: ns.EmpiricalRisk, theta: Tensor) -> Tensor | None:
    """f_nᵀH_m f_n of all pairs of samples, f those of Σ_B, (N, N); None where the estimate does not go by pairs."""
    mean = risk.hessian(theta).over_samples()
    columns = risk.noise_covariance(theta, BATCH_SIZE).columns_of_samples()
    if mean is None or columns is None:
        return None
    held = columns.at(torch.arange(columns.count)).mT.contiguous().mT  # each in one piece
    forms = [
        torch.cat([mean.of_one(sample).quadratic_forms(some).double() for some in held.split(8, dim=1)])
        for sample in range(mean.count)
    ]
    return torch.stack(forms, dim=1)


def relative_rmse(values: Tensor, exact: float) -> float:
    """√E(x − exact)² / exact."""
    return float((values - exact).square().mean().sqrt() / abs(exact))


# ---------------------------------------------------------------------- the rivals

XTRACE = "curvlinops: XTrace of H·EF"
HUTCHPP = "curvlinops: Hutch++ of H·EF"
EIGENTHINGS = "hessian-eigenthings: Hutch++ of H·EF"
HUTCHINSON = "hessian-eigenthings: Hutchinson of H·EF"
GRID = tuple(6 * number for number in (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 25, 30, 40, 50, 60, 80, 100, 140, 200))
RIVAL_SEEDS = 50


@dataclass(frozen=True)
class Chain:
    """H·EF for both libraries' estimators: what they need of an operator."""

    product: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        return self.size, self.size

    def __matmul__(self, block: Tensor) -> Tensor:
        return self.product(block)

    def matvec(self, vector: Tensor) -> Tensor:
        """The product with one vector."""
        return self.product(vector)


@dataclass(frozen=True)
class Rivals:
    """What the others need for 1 %, and how their time is taken.

    Attributes:
        curves: (products with H·EF, relative error) as far as tried, of each.
        budgets: the fewest that bring each to 1 % RMSE.
        whole: each one's whole computation.
        in_part: :data:`TIMED_COLUMNS` products alone, of those that cannot be run whole.
    """

    curves: dict[str, list[tuple[int, float]]]
    budgets: dict[str, int]
    whole: dict[str, Callable[[], float]]
    in_part: dict[str, Callable[[], float]]


def all_rivals(problem: Problem, chain: Chain, exact: float, seeds: int) -> Rivals:
    """Every estimator of both libraries."""
    estimators = {XTRACE: curvlinops.xtrace, HUTCHPP: curvlinops.hutchpp_trace}
    curves, budgets = fewest_products(estimators, chain, exact, seeds)
    if HUTCHPP in budgets:  # the same algorithm
        budgets[EIGENTHINGS] = budgets[HUTCHPP]
    samples = he.hutchinson(chain, num_samples=2000, seed=0).samples.double()
    budgets[HUTCHINSON] = math.ceil(float(samples.var() / (RTOL * exact) ** 2))
    return Rivals(curves, budgets, whole_computations(problem, budgets), {})


def xtrace_in_part(problem: Problem, chain: Chain, exact: float, seeds: int) -> Rivals:
    """XTrace alone, which takes the fewest products on the LeNet: of a network whose full blocks take over 24 GiB.

    XTrace's own algebra is not timed.
    """
    curves, budgets = fewest_products({XTRACE: curvlinops.xtrace}, chain, exact, seeds)
    block = torch.randn(chain.size, TIMED_COLUMNS, generator=torch.Generator().manual_seed(0))

    hessian, fisher = curvlinops_operators(problem)

    def products() -> float:
        return float((hessian @ (fisher @ block)).sum())

    return Rivals(curves, budgets, {}, {side: with_plain_attention(products) for side in budgets})


def fewest_products(
    estimators: dict[str, Callable[[Chain, int], Tensor]], chain: Chain, exact: float, seeds: int
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, int]]:
    """Errors seen, and the fewest products with H·EF that bring each estimator of its trace to 1 % RMSE."""
    budgets: dict[str, int] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for side, estimator in estimators.items():
        low, high = 0, len(GRID)  # the error falls with the products: bisect
        while low < high:
            middle = (low + high) // 2
            torch.manual_seed(GRID[middle])
            values = torch.stack([estimator(chain, GRID[middle]).double() for _ in range(seeds)])
            error = relative_rmse(values, exact)
            curves.setdefault(side, []).append((GRID[middle], error))
            low, high = (low, middle) if error <= RTOL else (middle + 1, high)
        curves[side].sort()
        if low < len(GRID):
            budgets[side] = GRID[low]
    return curves, budgets


def whole_computations(problem: Problem, budgets: dict[str, int]) -> dict[str, Callable[[], float]]:
    """Each rival's whole computation, ḡᵀHḡ taken off at the end: their EF is not centred."""
    model, data = problem.model, [(problem.inputs, problem.targets)]
    size = sum(p.numel() for p in model.parameters())

    def with_curvlinops(estimator: Callable[[Chain, int], Tensor], count: int) -> Callable[[], float]:
        def estimate() -> float:
            hessian, fisher = curvlinops_operators(problem)
            found = estimator(Chain(lambda block: hessian @ (fisher @ block), size), count)
            gradient = problem.gradient()
            return float(found - gradient @ (hessian @ gradient)) / BATCH_SIZE

        return with_plain_attention(estimate)

    def with_eigenthings(method: Literal["hutch++", "hutchinson"], count: int) -> Callable[[], float]:
        def estimate() -> float:
            hessian = he.HessianOperator(model, data, he.supervised_loss(nn.functional.cross_entropy))
            fisher = he.EmpiricalFisherOperator(
                model, data, he.supervised_per_sample_loss(nn.functional.cross_entropy)
            )
            chain = Chain(lambda vector: hessian.matvec(fisher.matvec(vector)), size)
            found = he.trace(chain, num_matvecs=count, method=method, seed=0).estimate
            gradient = problem.gradient()
            return (found - float(gradient @ hessian.matvec(gradient))) / BATCH_SIZE

        return with_plain_attention(estimate)

    sides: dict[str, Callable[[], float]] = {}
    if XTRACE in budgets:
        sides[XTRACE] = with_curvlinops(curvlinops.xtrace, budgets[XTRACE])
    if HUTCHPP in budgets:
        sides[HUTCHPP] = with_curvlinops(curvlinops.hutchpp_trace, budgets[HUTCHPP])
        sides[EIGENTHINGS] = with_eigenthings("hutch++", budgets[EIGENTHINGS])
    if budgets[HUTCHINSON] <= MOST_TIMED:
        sides[HUTCHINSON] = with_eigenthings("hutchinson", budgets[HUTCHINSON])
    return sides


def curvlinops_operators(problem: Problem) -> tuple[Any, Any]:
    """H and the empirical Fisher."""
    params, data = list(problem.model.parameters()), [(problem.inputs, problem.targets)]
    hessian, fisher = (
        kind(problem.model, nn.CrossEntropyLoss(), params, data, check_deterministic=False)
        for kind in (curvlinops.HessianLinearOperator, curvlinops.EFLinearOperator)
    )
    return hessian, fisher


def with_plain_attention(estimate: Callable[[], float]) -> Callable[[], float]:
    """The fused kernel of attention has no forward mode and no second derivative, and they do not go around it."""

    def call() -> float:
        with sdpa_kernel(SDPBackend.MATH):
            return estimate()

    return call


def dense_way(problem: Problem) -> list[float]:
    """Seconds of D products and a D × D covariance, from some of the columns: the rest would be the same again."""
    risk, theta = problem.risk, problem.theta
    size = len(theta)
    params = list(problem.model.parameters())
    loss = nn.functional.cross_entropy(problem.model(problem.inputs), problem.targets)
    parts = torch.autograd.grad(loss, params, create_graph=True)
    flat = torch.cat([part.flatten() for part in parts])
    seconds = []
    for column in range(DENSE_COLUMNS):
        begun = time.process_time()
        torch.autograd.grad(flat[column * (size // DENSE_COLUMNS)], params, retain_graph=True)
        seconds.append((time.process_time() - begun) * size)
    begun = time.process_time()
    rows = risk.per_sample_gradients(theta)
    rows = rows - rows.mean(0)
    covariance = rows.T @ rows / (len(rows) * BATCH_SIZE)
    hessian = torch.empty_like(covariance)
    (hessian * covariance).sum()
    rest = time.process_time() - begun
    return [each + rest for each in seconds]
