"""Draws from an operator have it as their covariance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import F64, Case, close, generator, normal
from noisescape.linops import DiagonalOperator, IsotropicOperator, LowRankOperator, SymmetricOperator
from operator_matrix import MATRIX, MLP, D, N, each_psd, fisher_by_classes, matrix_of
from slowness import quick


def true_classes(outputs: Tensor, gen: torch.Generator) -> Tensor:
    return torch.multinomial(torch.softmax(outputs, 1), 1, generator=gen)[:, 0]


DRAWS = 100_000
Z_BOUND = 5.5
"""Of the at most 31·32/2 entries tested together; chance of one beyond it: 2e-5."""
ONE_BY_ONE = ("noise covariance without forward mode", "Gauss–Newton, streamed")
"""Whose draws are a backward pass each: minutes for all of them."""
LONG = (*ONE_BY_ONE, "Gauss–Newton, sequence", "Gauss–Newton, squared", "Fisher, squared", "Fisher, logistic")
"""Seconds each, with others of their kind that take less."""
DRAWN = [name for name, entry in MATRIX.items() if entry.psd]


def draws(operator: SymmetricOperator, seed: int, count: int = DRAWS) -> Tensor:
    gen = generator(seed)
    return torch.cat([operator.sample(count // 10, gen) for _ in range(10)])


@pytest.mark.parametrize("name", quick([name for name in DRAWN if name not in LONG], DRAWN))
def test_covariance_of_draws_is_the_operator(name: str) -> None:
    assert_covariance_of_draws(name, DRAWS // 100 if name in ONE_BY_ONE else DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_covariance_of_as_many_draws_made_one_by_one(name: str) -> None:
    assert_covariance_of_draws(name, DRAWS)


def assert_covariance_of_draws(name: str, count: int) -> None:
    operator, matrix = MATRIX[name].build(), matrix_of(name)
    drawn = draws(operator, 17, count)
    assert drawn.shape == (count, len(matrix))
    variances = matrix.diagonal()
    rounding = 1e-9 * float(variances.max())
    mean_error = (variances / count).sqrt() + rounding
    assert float((drawn.mean(0).abs() / mean_error).max()) < Z_BOUND
    found = drawn.T @ drawn / count
    entry_error = ((torch.outer(variances, variances) + matrix**2) / count).sqrt() + rounding
    assert float(((found - matrix).abs() / entry_error).max()) < Z_BOUND
    trace_error = (2 * (matrix**2).sum() / count).sqrt()
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


@pytest.mark.slow
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
