"""Every kind of operator beside its matrix, summed up by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cases import CASES, F64, Case, normal, symmetric
from internals import chunk_size
from noisescape.linops import (
    DenseOperator,
    DeviationsOperator,
    DiagonalOperator,
    FunctionOperator,
    IsotropicOperator,
    LowRankOperator,
    SymmetricOperator,
)

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
    assert chunk_size(risk) < case.count
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
    "deviations": Entry(lambda: DeviationsOperator(DIAGONAL), lambda: torch.diag(DIAGONAL**2)),
    "scaled deviations": Entry(
        lambda: DeviationsOperator(DIAGONAL).scaled(2.5), lambda: torch.diag(2.5 * DIAGONAL**2)
    ),
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
