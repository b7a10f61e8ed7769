"""Linear regression with Gaussian inputs: every matrix in closed form.

With x ~ N(0, S), y = xᵀw* + σξ and the loss (xᵀw − y)², let δ = w − w*. Then, by Isserlis' theorem,

    H = 2S,    ḡ = 2Sδ,    C = 4(σ² + δᵀSδ) S + 4 Sδδᵀ S,    Fisher = 2S,

the last because (f − y)² is the negative log-likelihood of a Gaussian of variance ½.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import F64, normal, symmetric
from noisescape.linops import product_trace
from noisescape.risk import EmpiricalRisk

D = 5
SIGMA = 0.6
S = symmetric(D, torch.tensor([3.0, 1.5, 1.0, 0.5, 0.1]), seed=1)
TRUTH, HERE = normal(D, seed=2), normal(D, seed=3)
DELTA = HERE - TRUTH


@cache
def sample(count: int) -> tuple[Tensor, Tensor]:
    x = normal(count, D, seed=4) @ torch.linalg.cholesky(S).T
    return x, x @ TRUTH + SIGMA * normal(count, seed=5)


@cache
def regression(count: int) -> EmpiricalRisk:
    x, y = sample(count)
    return EmpiricalRisk(nn.Linear(D, 1, bias=False).to(F64), nn.functional.mse_loss, (x, y[:, None]))


def population() -> dict[str, Tensor]:
    along = S @ DELTA
    return {
        "loss": SIGMA**2 + DELTA @ along,
        "gradient": 2 * along,
        "hessian": 2 * S,
        "covariance": 4 * (SIGMA**2 + DELTA @ along) * S + 4 * torch.outer(along, along),
    }


# ---------------------------------------------------------------------- of the sample, exactly


def test_hessian_gauss_newton_and_fisher_of_the_sample_are_its_second_moment() -> None:
    x, _ = sample(50)
    expected = 2 * x.T @ x / 50
    risk = regression(50)
    for operator in (risk.hessian(HERE), risk.gauss_newton(HERE), risk.fisher(HERE)):
        assert_close(operator.dense(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_noise_covariance_of_the_sample_is_that_of_its_residuals(batch_size: int, replacement: bool) -> None:
    x, y = sample(50)
    rows = 2 * (x @ HERE - y)[:, None] * x
    factor = 1 / batch_size if replacement else (50 - batch_size) / (batch_size * 49)
    expected = factor * torch.cov(rows.T, correction=0)
    found = regression(50).noise_covariance(HERE, batch_size, replacement=replacement)
    assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)


def test_noise_vanishes_where_every_sample_is_fitted() -> None:
    x, _ = sample(50)
    risk = EmpiricalRisk(nn.Linear(D, 1, bias=False).to(F64), nn.MSELoss(), (x, (x @ TRUTH)[:, None]))
    assert float(risk.noise_covariance(TRUTH, 3).trace()) < 1e-24
    assert float(risk.hessian(TRUTH).trace()) > 1


# ---------------------------------------------------------------------- of the population, within the error

COUNT = 200_000


def gradient_products() -> Tensor:
    """(g_n − ḡ)(g_n − ḡ)ᵀ of every sample, (N, D, D), from the formula."""
    x, y = sample(COUNT)
    rows = 2 * (x @ HERE - y)[:, None] * x
    rows = rows - rows.mean(0)
    return rows[:, :, None] * rows[:, None, :]


def z_scores(found: Tensor, expected: Tensor, terms: Tensor) -> Tensor:
    return (found - expected) / (terms.std(0) / math.sqrt(len(terms)))


def test_loss_and_gradient_approach_the_populations() -> None:
    risk, expected = regression(COUNT), population()
    losses = risk.losses(HERE)
    assert abs(float(z_scores(losses.mean(), expected["loss"], losses))) < 4
    rows = risk.per_sample_gradients(HERE)
    assert float(z_scores(risk.gradient(HERE), expected["gradient"], rows).abs().max()) < 4


def test_hessian_approaches_the_populations() -> None:
    x, _ = sample(COUNT)
    terms = 2 * x[:, :, None] * x[:, None, :]
    found = regression(COUNT).hessian(HERE).dense()
    assert float(z_scores(found, population()["hessian"], terms).abs().max()) < 4


def test_noise_covariance_approaches_the_populations() -> None:
    found = 8 * regression(COUNT).noise_covariance(HERE, 8).dense()
    assert float(z_scores(found, population()["covariance"], gradient_products()).abs().max()) < 4


def test_the_indicator_approaches_the_populations() -> None:
    risk, expected = regression(COUNT), population()
    found = product_trace(risk.hessian(HERE), risk.noise_covariance(HERE, 8)).value
    exact = float((expected["hessian"] * expected["covariance"]).sum()) / 8
    x, _ = sample(COUNT)
    # Tr(ĤĈ) varies to first order as Tr(ĤC) + Tr(HĈ)
    by_hessian = torch.einsum("ni,ij,nj->n", x, expected["covariance"], x) * 2
    by_covariance = (gradient_products() * expected["hessian"]).sum((1, 2))
    error = float((by_hessian + by_covariance).std()) / 8 / math.sqrt(COUNT)
    assert abs(found - exact) < 4 * error
    assert error < 0.02 * exact, "tight enough to show a wrong factor"


def test_minibatch_gradients_scatter_as_the_population_predicts() -> None:
    """20,000 batches of 8 drawn with replacement, by the package's own minibatch gradient."""
    risk = regression(COUNT)
    indices = torch.randint(0, COUNT, (20_000, 8), generator=torch.Generator().manual_seed(6))
    drawn = torch.cat([risk.minibatch_gradient(HERE.expand(len(part), D), part) for part in indices.split(2_000)])
    deviations = drawn - population()["gradient"]
    terms = deviations[:, :, None] * deviations[:, None, :]
    assert float(z_scores(terms.mean(0), population()["covariance"] / 8, terms).abs().max()) < 4
