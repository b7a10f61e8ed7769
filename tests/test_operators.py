"""Every operator against every oracle: a dense matrix summed up by hand, and its own draws."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import CASES, F64, Case, classes, generator, normal, symmetric
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    IsotropicOperator,
    LowRankOperator,
    SymmetricOperator,
    diagonal,
    eigenpairs,
    product_trace,
    spectral_density,
    squared_norm,
    trace,
)
from noisescape.linops.gram import leading_pairs
from noisescape.risk.gradient_covariance import GradientOuterProduct, covariance_factor

MLP, SQUARED, LOGISTIC = CASES["mlp cross-entropy"], CASES["mlp squared"], CASES["logistic"]
D = len(MLP.theta)
N = MLP.count


@dataclass
class Entry:
    """An operator, freshly built at each call, and its matrix by another way."""

    build: Callable[[], SymmetricOperator]
    matrix: Callable[[], Tensor]
    psd: bool = True


def _streamed(case: Case):
    """The per-sample gradients do not fit: products are passes over the data, a few samples at a time."""
    risk = case.risk(memory_budget=2_000)
    assert risk.chunk_size() < case.count
    return risk


def fisher_by_classes() -> Tensor:
    """(1/N) Σ_n Σ_c p_nc ∇(−log p_nc) ∇(−log p_nc)ᵀ, one class after the other."""
    probabilities = torch.softmax(MLP.outputs(MLP.theta, MLP.inputs), 1).detach()
    total = torch.zeros(D, D, dtype=F64)
    for label in range(3):
        rows = Case(MLP.build, MLP.inputs, torch.full_like(MLP.targets, label)).gradients()
        for n in range(N):
            total += probabilities[n, label] * torch.outer(rows[n], rows[n])
    return total / N


def fisher_of_squared_loss() -> Tensor:
    """The loss |f − y|²/m is −log of a Gaussian of variance m/2: Fisher = (2/m) (1/N) Σ JᵀJ."""
    outputs = 2
    return sum(jac.T @ jac for jac in SQUARED.output_jacobians()) * 2 / outputs / SQUARED.count


def fisher_of_logistic_loss() -> Tensor:
    """(1/N) Σ p(1−p) JᵀJ."""
    p = torch.sigmoid(LOGISTIC.outputs(LOGISTIC.theta, LOGISTIC.inputs)).detach()
    parts = zip(p, LOGISTIC.output_jacobians(), strict=True)
    return sum(q * (1 - q) * jac.T @ jac for q, jac in parts) / LOGISTIC.count


def second_moment(case: Case) -> Tensor:
    return sum(torch.outer(row, row) for row in case.gradients()) / case.count


def true_classes(outputs: Tensor, gen: torch.Generator) -> Tensor:
    return torch.multinomial(torch.softmax(outputs, 1), 1, generator=gen)[:, 0]


DENSE = symmetric(9, torch.linspace(-1, 3, 9), seed=1)
PSD = symmetric(9, torch.linspace(0, 3, 9) ** 2, seed=2)
DIAGONAL = torch.tensor([0.0, 0.5, 3.0, 1.0, 2.0], dtype=F64)
FACTOR = normal(9, 3, seed=3)
VARIANCE = torch.tensor(0.7, dtype=F64)


def _function(psd: bool) -> FunctionOperator:
    matrix = PSD if psd else DENSE
    return FunctionOperator(lambda block: matrix @ block, 9, dtype=F64, device="cpu", psd=psd)


WITHOUT = (N - 3) / (3 * (N - 1))

MATRIX: dict[str, Entry] = {
    "Hessian": Entry(lambda: MLP.risk().hessian(MLP.theta), MLP.hessian, psd=False),
    "Hessian, streamed": Entry(lambda: _streamed(MLP).hessian(MLP.theta), MLP.hessian, psd=False),
    "Hessian without forward mode": Entry(
        lambda: CASES["no forward mode"].risk().hessian(CASES["no forward mode"].theta),
        CASES["no forward mode"].hessian,
        psd=False,
    ),
    "Gauss–Newton, cross-entropy": Entry(lambda: MLP.risk().gauss_newton(MLP.theta), MLP.gauss_newton),
    "Gauss–Newton, streamed": Entry(lambda: _streamed(MLP).gauss_newton(MLP.theta), MLP.gauss_newton),
    "Gauss–Newton, squared": Entry(lambda: SQUARED.risk().gauss_newton(SQUARED.theta), SQUARED.gauss_newton),
    "Gauss–Newton, sequence": Entry(
        lambda: CASES["sequence"].risk().gauss_newton(CASES["sequence"].theta), CASES["sequence"].gauss_newton
    ),
    "Gauss–Newton without forward mode": Entry(
        lambda: CASES["no forward mode"].risk().gauss_newton(CASES["no forward mode"].theta),
        CASES["no forward mode"].gauss_newton,
    ),
    "Fisher, cross-entropy": Entry(lambda: MLP.risk().fisher(MLP.theta), fisher_by_classes),
    "Fisher, squared": Entry(lambda: SQUARED.risk().fisher(SQUARED.theta), fisher_of_squared_loss),
    "Fisher, logistic": Entry(lambda: LOGISTIC.risk().fisher(LOGISTIC.theta), fisher_of_logistic_loss),
    "sampled Fisher": Entry(
        lambda: MLP.risk().fisher(MLP.theta, sample_targets=lambda out, gen: MLP.targets),
        lambda: second_moment(MLP),
    ),
    "empirical Fisher": Entry(lambda: MLP.risk().empirical_fisher(MLP.theta), lambda: second_moment(MLP)),
    "empirical Fisher, streamed": Entry(
        lambda: _streamed(MLP).empirical_fisher(MLP.theta), lambda: second_moment(MLP)
    ),
    "noise covariance, with replacement": Entry(
        lambda: MLP.risk().noise_covariance(MLP.theta, 3), lambda: MLP.covariance() / 3
    ),
    "noise covariance, without": Entry(
        lambda: MLP.risk().noise_covariance(MLP.theta, 3, replacement=False),
        lambda: MLP.covariance() * WITHOUT,
    ),
    "noise covariance, streamed": Entry(
        lambda: _streamed(MLP).noise_covariance(MLP.theta, 3), lambda: MLP.covariance() / 3
    ),
    "noise covariance without, streamed": Entry(
        lambda: _streamed(MLP).noise_covariance(MLP.theta, 3, replacement=False),
        lambda: MLP.covariance() * WITHOUT,
    ),
    "noise covariance without forward mode": Entry(
        lambda: CASES["no forward mode"].risk(memory_budget=1).noise_covariance(CASES["no forward mode"].theta, 2),
        lambda: CASES["no forward mode"].covariance() / 2,
    ),
    "dense": Entry(lambda: DenseOperator(DENSE), lambda: DENSE, psd=False),
    "dense PSD": Entry(lambda: DenseOperator(PSD, psd=True), lambda: PSD),
    "function": Entry(lambda: _function(False), lambda: DENSE, psd=False),
    "function PSD": Entry(lambda: _function(True), lambda: PSD),
    "diagonal": Entry(lambda: DiagonalOperator(DIAGONAL), lambda: torch.diag(DIAGONAL)),
    "indefinite diagonal": Entry(
        lambda: DiagonalOperator(DIAGONAL - 1), lambda: torch.diag(DIAGONAL - 1), psd=False
    ),
    "scaled diagonal": Entry(lambda: DiagonalOperator(DIAGONAL).scaled(2.5), lambda: torch.diag(2.5 * DIAGONAL)),
    "isotropic": Entry(lambda: IsotropicOperator(VARIANCE, 4), lambda: VARIANCE * torch.eye(4, dtype=F64)),
    "low rank": Entry(lambda: LowRankOperator(FACTOR), lambda: FACTOR @ FACTOR.T),
    "scaled low rank": Entry(lambda: LowRankOperator(FACTOR).scaled(0.3), lambda: 0.3 * FACTOR @ FACTOR.T),
    "scaled": Entry(lambda: 2.5 * DenseOperator(PSD, psd=True), lambda: 2.5 * PSD),
    "scaled by a negative": Entry(lambda: LowRankOperator(FACTOR) * -2, lambda: -2 * FACTOR @ FACTOR.T, psd=False),
    "scaled noise covariance": Entry(
        lambda: 0.1**2 * MLP.risk().noise_covariance(MLP.theta, 3), lambda: 0.01 * MLP.covariance() / 3
    ),
    "sum": Entry(lambda: DenseOperator(PSD, psd=True) + LowRankOperator(FACTOR), lambda: PSD + FACTOR @ FACTOR.T),
    "indefinite sum": Entry(
        lambda: DenseOperator(DENSE) + LowRankOperator(FACTOR), lambda: DENSE + FACTOR @ FACTOR.T, psd=False
    ),
}

each_operator = pytest.mark.parametrize("name", MATRIX)
each_psd = pytest.mark.parametrize("name", [name for name, entry in MATRIX.items() if entry.psd])


@functools.cache
def matrix_of(name: str) -> Tensor:
    return MATRIX[name].matrix().detach()


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    scale = max(float(expected.abs().max()), 1e-9)
    assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


# ---------------------------------------------------------------------- deterministic oracles


@each_operator
def test_product_with_a_vector(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    vector = normal(len(matrix), seed=5)
    close(operator @ vector, matrix @ vector)
    assert operator.products == 1


@each_operator
def test_product_with_a_block_of_columns(name: str) -> None:
    """More columns than are differentiated along together."""
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    block = normal(len(matrix), 18, seed=5)
    close(operator @ block, matrix @ block)
    assert operator.products == 18


@each_operator
def test_product_with_a_block_of_no_columns(name: str) -> None:
    operator = MATRIX[name].build()
    assert (operator @ torch.zeros(operator.size, 0, dtype=F64)).shape == (operator.size, 0)


@each_operator
@pytest.mark.parametrize("columns", [0, 1, 18])
def test_quadratic_forms_are_those_of_the_matrix(name: str, columns: int) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    block = normal(len(matrix), columns, seed=5)
    found, expected = operator.quadratic_forms(block), (block * (matrix @ block)).sum(0)
    assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(matrix.abs().max()))
    assert operator.products == columns


@each_psd
@pytest.mark.parametrize("k", [0, 1, 4, 8, N, N + 3])
def test_parts_of_a_split_add_up_to_the_matrix(name: str, k: int) -> None:
    """A = CCᵀ + RRᵀ, R read off the unit vectors; with all there is in C nothing is left."""
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    parts = operator.split(k)
    if parts is None:
        assert not operator.factored
        assert not isinstance(operator, (GradientOuterProduct, LowRankOperator))
        return
    assert operator.factored
    columns = parts.columns()
    assert columns.shape == (len(matrix), parts.carried.shape[1])
    assert columns.shape[1] <= k
    assert_close(parts.columns(slice(1, 3)), columns[:, 1:3], rtol=1e-12, atol=1e-12)
    root = parts.rest(torch.eye(len(parts.carried), dtype=F64))
    close(columns @ columns.T + root @ root.T, matrix)
    if k >= N:
        assert parts.exhausted
    if parts.exhausted:
        close(columns @ columns.T, matrix)


def test_a_split_of_held_gradients_carries_the_leading_directions() -> None:
    operator, matrix = MATRIX["noise covariance, with replacement"].build(), MLP.covariance() / 3
    carried = float(operator.split(3).columns().square().sum())
    assert carried == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-3:].sum()), rel=1e-9)


@each_operator
def test_dense_matrix_is_right_and_exactly_symmetric(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    dense = operator.dense()
    close(dense, matrix)
    assert torch.equal(dense, dense.T)
    assert operator.shape == tuple(matrix.shape)
    assert operator.psd is MATRIX[name].psd


@each_operator
def test_products_are_symmetric(name: str) -> None:
    operator = MATRIX[name].build()
    u, v = normal(2, operator.size, seed=6)
    assert float(u @ (operator @ v)) == pytest.approx(float(v @ (operator @ u)), rel=1e-9, abs=1e-12)


@each_operator
@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "after a product"])
def test_diagonal_and_trace_are_exact(name: str, used_before: bool) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    if used_before:
        operator @ normal(operator.size, seed=1)
    close(operator.diagonal(), matrix.diagonal())
    close(operator.trace(), matrix.trace())


@each_operator
def test_scipy_linear_operator_multiplies_alike(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name).numpy()
    linear = operator.to_scipy()
    block = normal(len(matrix), 3, seed=7).numpy()
    fortran = np.asfortranarray(block)
    fortran.flags.writeable = False
    rtol, atol = 1e-9, 1e-9 * np.abs(matrix).max()
    assert linear.dtype == np.float64
    np.testing.assert_allclose(linear.matvec(block[:, 0]), matrix @ block[:, 0], rtol, atol)
    np.testing.assert_allclose(linear.rmatvec(block[:, 0]), matrix @ block[:, 0], rtol, atol)
    np.testing.assert_allclose(linear.matmat(fortran), matrix @ block, rtol, atol)
    np.testing.assert_allclose(linear @ block[:, :1], matrix @ block[:, :1], rtol, atol)


KNOWS_LEADING_PAIRS = [
    "sampled Fisher",
    "empirical Fisher",
    "noise covariance, with replacement",
    "noise covariance, without",
    "scaled noise covariance",
    "isotropic",
    "low rank",
    "scaled low rank",
]


@pytest.mark.parametrize("name", KNOWS_LEADING_PAIRS)
def test_leading_pairs_known_from_structure_are_those_of_a_dense_solver(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    pairs = operator.leading(4)
    assert pairs is not None
    values, vectors = pairs
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:4]
    assert len(values) == vectors.shape[1]
    close(values, expected[: len(values)])
    assert bool((expected[len(values) :].abs() <= 1e-12 * expected[0]).all()), "pairs left out must be null"
    close(vectors.T @ vectors, torch.eye(len(values), dtype=F64))
    close(matrix @ vectors, values * vectors)


@pytest.mark.parametrize("shape", [(30, 6), (6, 30), (12, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_leading_pairs_of_a_gram_matrix_stay_orthonormal_when_ill_conditioned(shape, dtype) -> None:
    small = min(shape)
    left = torch.linalg.qr(normal(shape[0], small, seed=1)).Q
    right = torch.linalg.qr(normal(shape[1], small, seed=2)).Q
    rows = ((left * torch.logspace(0, -8, small, dtype=F64)) @ right.T).to(dtype)
    values, vectors = leading_pairs(rows, small)
    assert_close(vectors.T @ vectors, torch.eye(len(values), dtype=dtype), rtol=0, atol=0.05)
    exact = torch.linalg.svdvals(rows.double())[: len(values)].square()
    floor = 100 * torch.finfo(dtype).eps
    assert_close(values.double(), exact, rtol=0.0, atol=float(floor * exact[0]))


def test_leading_pairs_of_replicas_are_those_of_each() -> None:
    rows = normal(3, 5, 8, seed=4)
    values, vectors = leading_pairs(rows, 2)
    for r in range(3):
        alone, _ = leading_pairs(rows[r], 2)
        close(values[r], alone)
        close(rows[r].T @ (rows[r] @ vectors[r]), values[r] * vectors[r])


# ---------------------------------------------------------------------- stochastic oracles

DRAWS = 100_000
Z_BOUND = 5.5
"""Of the at most 31·32/2 entries tested together; chance of one beyond it: 2e-5."""


def draws(operator: SymmetricOperator, seed: int) -> Tensor:
    gen = generator(seed)
    return torch.cat([operator.sample(DRAWS // 10, gen) for _ in range(10)])


@each_psd
def test_covariance_of_draws_is_the_operator(name: str) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    drawn = draws(operator, seed=17)
    assert drawn.shape == (DRAWS, len(matrix))
    variances = matrix.diagonal()
    rounding = 1e-9 * float(variances.max())
    mean_error = (variances / DRAWS).sqrt() + rounding
    assert float((drawn.mean(0).abs() / mean_error).max()) < Z_BOUND
    found = drawn.T @ drawn / DRAWS
    entry_error = ((torch.outer(variances, variances) + matrix**2) / DRAWS).sqrt() + rounding
    assert float(((found - matrix).abs() / entry_error).max()) < Z_BOUND
    trace_error = (2 * (matrix**2).sum() / DRAWS).sqrt()
    assert abs(float(found.trace() - matrix.trace())) < 4 * float(trace_error)


@each_psd
def test_draws_repeat_with_the_generator_and_differ_otherwise(name: str) -> None:
    operator = MATRIX[name].build()
    first, again, other = (operator.sample(3, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_draws_of_replicas_have_each_their_own_covariance() -> None:
    values = torch.tensor([[1.0, 4.0], [9.0, 0.25]], dtype=F64)
    factors = normal(2, 2, 1, seed=3)
    for operator, expected in (
        (DiagonalOperator(values), torch.diag_embed(values)),
        (LowRankOperator(factors), factors @ factors.mT),
        (IsotropicOperator(values[0], 2), values[0][:, None, None] * torch.eye(2, dtype=F64)),
        (DiagonalOperator(values).scaled(values[0]), values[0][:, None, None] * torch.diag_embed(values)),
        (LowRankOperator(factors).scaled(values[0]), values[0][:, None, None] * factors @ factors.mT),
    ):
        drawn = operator.sample(DRAWS, generator(5))
        assert drawn.shape == (DRAWS, 2, 2)
        found = torch.einsum("mri,mrj->rij", drawn, drawn) / DRAWS
        spread = expected.diagonal(dim1=-2, dim2=-1)
        error = ((spread[:, :, None] * spread[:, None, :] + expected**2) / DRAWS).sqrt()
        assert float(((found - expected).abs() / (error + 1e-12)).max()) < 4.5
        close(operator.trace(), spread.sum(-1))
        cross = torch.einsum("mi,mj->ij", drawn[:, 0], drawn[:, 1]) / DRAWS
        assert float((cross.abs() / (torch.outer(spread[0], spread[1]) / DRAWS).sqrt()).max()) < 4.5


def test_sampled_fisher_converges_to_the_exact_one_within_its_standard_error() -> None:
    """Each entry is a mean of independent g_i g_j whose variance is known by enumeration of the classes."""
    repeats = 3000
    sampled = MLP.risk().fisher(MLP.theta, sample_targets=true_classes, draws=repeats, seed=3).dense()
    probabilities = torch.softmax(MLP.outputs(MLP.theta, MLP.inputs), 1).detach()
    first = torch.zeros(N, D, D, dtype=F64)
    second = torch.zeros(N, D, D, dtype=F64)
    for label in range(3):
        rows = Case(MLP.build, MLP.inputs, torch.full_like(MLP.targets, label)).gradients()
        products = rows[:, :, None] * rows[:, None, :]
        first += probabilities[:, label, None, None] * products
        second += probabilities[:, label, None, None] * products**2
    error = ((second - first**2).sum(0) / N**2 / repeats).sqrt()
    z = (sampled - fisher_by_classes()) / error.clamp_min(1e-12)
    assert float(z.abs().max()) < Z_BOUND
    # entries are strongly correlated: few degrees of freedom stand behind this mean
    assert 0.1 < float(z.square().mean()) < 4, "the error is of the expected size, not merely within bounds"


# ---------------------------------------------------------------------- replicas

REPLICAS = 3
_VALUES = normal(REPLICAS, 5, seed=31).square()
_FACTORS = normal(REPLICAS, 5, 2, seed=32)
_VARIANCES = normal(REPLICAS, seed=33).square()
STRUCTURED: dict[str, tuple[Callable[[], SymmetricOperator], Tensor]] = {
    "diagonal": (lambda: DiagonalOperator(_VALUES), torch.diag_embed(_VALUES)),
    "isotropic": (lambda: IsotropicOperator(_VARIANCES, 5), _VARIANCES[:, None, None] * torch.eye(5, dtype=F64)),
    "low rank": (lambda: LowRankOperator(_FACTORS), _FACTORS @ _FACTORS.mT),
    "scaled diagonal": (
        lambda: DiagonalOperator(_VALUES).scaled(_VARIANCES),
        _VARIANCES[:, None, None] * torch.diag_embed(_VALUES),
    ),
    "scaled": (lambda: 0.5 * LowRankOperator(_FACTORS), 0.5 * _FACTORS @ _FACTORS.mT),
    "sum": (
        lambda: DiagonalOperator(_VALUES) + LowRankOperator(_FACTORS),
        torch.diag_embed(_VALUES) + _FACTORS @ _FACTORS.mT,
    ),
}
each_structured = pytest.mark.parametrize("name", STRUCTURED)
BLOCK_OF_FIVE = torch.eye(5, dtype=F64)
NEEDS_A_SINGLE_ONE: dict[str, Callable[[SymmetricOperator], object]] = {
    "product": lambda operator: operator @ BLOCK_OF_FIVE,
    "product with a vector": lambda operator: operator @ BLOCK_OF_FIVE[0],
    "quadratic forms": lambda operator: operator.quadratic_forms(BLOCK_OF_FIVE),
    "dense": lambda operator: operator.dense(),
    "scipy": lambda operator: operator.to_scipy().matmat(BLOCK_OF_FIVE.numpy()),
    "trace": trace,
    "squared norm": squared_norm,
    "diagonal": diagonal,
    "eigenpairs": lambda operator: eigenpairs(operator, 1),
    "product trace": lambda operator: product_trace(operator, DenseOperator(BLOCK_OF_FIVE)),
    "product trace from the right": lambda operator: product_trace(DenseOperator(BLOCK_OF_FIVE), operator),
    "density": spectral_density,
}


@each_structured
def test_a_replica_is_its_own_matrix(name: str) -> None:
    build, matrices = STRUCTURED[name]
    for index, matrix in enumerate(matrices):
        alone = build().replica(index)
        assert alone.replicas == ()
        close(alone.dense(), matrix)
        close(alone @ BLOCK_OF_FIVE[:, :2], matrix[:, :2])
        close(alone.diagonal(), matrix.diagonal())
        close(alone.trace(), matrix.trace())
        assert type(alone) is type(build())
        with pytest.raises(ValueError, match="single operator and has no replica 0"):
            alone.replica(0)


@each_structured
def test_traces_and_diagonals_of_replicas_are_those_of_each(name: str) -> None:
    build, matrices = STRUCTURED[name]
    operator = build()
    assert operator.replicas == (REPLICAS,)
    close(operator.trace(), matrices.diagonal(dim1=-2, dim2=-1).sum(-1))
    close(operator.diagonal(), matrices.diagonal(dim1=-2, dim2=-1))
    assert operator.sample(4, generator(1)).shape == (4, REPLICAS, 5)


@each_structured
@pytest.mark.parametrize("what", NEEDS_A_SINGLE_ONE)
def test_replicas_refuse_what_only_one_matrix_has(name: str, what: str) -> None:
    operator = STRUCTURED[name][0]()
    with pytest.raises(ValueError, match=r"is 3 operators, one for each replica; take one .* \.replica\(r\)"):
        NEEDS_A_SINGLE_ONE[what](operator)
    NEEDS_A_SINGLE_ONE[what](operator.replica(1))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["isotropic", "low rank", "scaled"])
def test_leading_pairs_of_replicas_are_along_the_last_axis(name: str, k: int) -> None:
    build, matrices = STRUCTURED[name]
    pairs = build().leading(k)
    assert pairs is not None
    values, vectors = pairs
    assert values.shape == (REPLICAS, k)
    assert vectors.shape == (REPLICAS, 5, k)
    close(values, torch.linalg.eigvalsh(matrices).flip(-1)[:, :k])
    close(matrices @ vectors, values[:, None] * vectors)


def test_a_sum_of_different_numbers_of_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one has replicas \(3,\), the other \(\)"):
        DiagonalOperator(_VALUES) + DiagonalOperator(_VALUES[0])


# ---------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("streamed", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])
def test_covariance_equals_an_enumeration_of_all_batches(replacement: bool, streamed: bool) -> None:
    case = Case(
        lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        normal(7, 2, seed=1),
        classes(7, of=2, seed=2),
    )
    rows = case.gradients()
    chosen = itertools.product(range(7), repeat=3) if replacement else itertools.combinations(range(7), 3)
    batches = torch.tensor(list(chosen))
    assert len(batches) == (343 if replacement else 35)
    means = torch.stack([sum(rows[i] for i in batch) / 3 for batch in batches.tolist()])
    deviations = means - rows.mean(0)
    expected = deviations.T @ deviations / len(batches)
    risk = case.risk(memory_budget=1) if streamed else case.risk()
    covariance = risk.noise_covariance(case.theta, 3, replacement=replacement)
    assert_close(covariance.dense(), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    found = torch.stack([risk.minibatch_gradient(case.theta, batch) for batch in batches[:20]])
    assert_close(found, means[:20], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("batch_size", "count"), [(1, 5), (2, 5), (5, 5), (1, 1)])
def test_factor_without_replacement_is_the_enumerated_one(batch_size: int, count: int) -> None:
    values = normal(count, seed=1)
    means = [sum(values[list(batch)]) / batch_size for batch in itertools.combinations(range(count), batch_size)]
    spread = float(torch.stack(means).var(correction=0))
    expected = covariance_factor(batch_size, count, replacement=False) * float(values.var(correction=0))
    assert spread == pytest.approx(expected, abs=1e-14)


def test_covariance_holds_the_parameters_it_was_built_at(mlp: Case) -> None:
    theta = mlp.theta.clone()
    covariance = mlp.risk().noise_covariance(theta, 3)
    theta.zero_()
    close(covariance.dense(), mlp.covariance() / 3)


# ---------------------------------------------------------------------- algebra


def test_products_are_counted_in_every_operand() -> None:
    left, right = DenseOperator(PSD, psd=True), LowRankOperator(FACTOR)
    total = 2 * left + right
    total @ normal(9, 4, seed=1)
    assert (left.products, right.products, total.products) == (4, 4, 4)


def test_repr_names_the_operator_its_size_and_its_kind() -> None:
    assert repr(LowRankOperator(FACTOR)) == "low-rank(9 × 9, PSD, torch.float64, cpu)"
