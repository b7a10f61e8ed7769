"""Every dynamics against every oracle: the noise it draws, the covariance it claims, the loss it reaches."""

from __future__ import annotations

import math

import pytest
import torch

import dynamics_cases
import noisescape as ns
from dynamics_cases import ALL, AT, MATCHED_TO_SIGMA, NOISY, TABLE, WANTED
from noisescape.linops.structured import HeldOperator
from noisescape.theory.landscapes import quadratic
from slowness import quick

DRAWS = 100_000
LONG = ("gld-hessian", "gld-top-eigenvector", "gld-leading-rescaled", "yoked shuffled", "yoked sgd")
"""The longest to draw; their claimed covariance is among the quick ones."""
RUNS = [
    pytest.param(name, lr, id=f"{name}-{rate}")
    for name in ALL
    if name != "sgd-epoch"  # whose steps are not independent
    for lr, rate in ((0.01, "small ηλ"), (0.55, "ηλ above 1"))
]


def test_every_dynamics_is_in_the_table():
    assert {type(dynamics) for dynamics in ALL.values()} == {
        *ns.DYNAMICS.values(),
        ns.Additive,
        ns.MatchedTrace,
        ns.SVAG,
        ns.Yoked,
    }


@pytest.mark.parametrize("name", ALL)
def test_covariance_operator_is_that_of_the_table(name, regression, theta):
    found = ALL[name].covariance(regression, theta).dense()
    torch.testing.assert_close(found, WANTED[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MATCHED_TO_SIGMA)
def test_trace_is_matched_to_the_minibatch_noise(name, regression, theta):
    found = ALL[name].covariance(regression, theta).trace()
    torch.testing.assert_close(found, MATCHED_TO_SIGMA[name], rtol=1e-9, atol=0)
    batch = getattr(ALL[name], "batch_size", None)
    if batch is not None:
        sigma = regression.noise_covariance(theta, batch, replacement=ALL[name].replacement)
        torch.testing.assert_close(found, sigma.trace(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", quick([name for name in ALL if name not in LONG], ALL))
def test_draws_have_mean_zero_and_the_claimed_covariance(name, regression, theta):
    dynamics = ALL[name]
    replicas = theta.expand(DRAWS, -1)
    noisy, _ = dynamics.noisy_gradient(
        regression, replicas, dynamics.init(regression), torch.Generator().manual_seed(3)
    )
    noise = noisy - regression.gradient(theta) - TABLE[name].drift(AT)
    wanted = dynamics.covariance(regression, theta).dense()
    spread = wanted.diagonal().sqrt()
    assert (noise.mean(0).abs() <= 4.5 * spread / math.sqrt(DRAWS) + 1e-12).all()
    products = noise[:, :, None] * noise[:, None, :]
    error = products.std(0) / math.sqrt(DRAWS)
    assert ((products.mean(0) - wanted).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize(("name", "lr"), quick(RUNS[::7], RUNS))
def test_loss_on_a_quadratic_follows_the_discrete_formula(name, lr):
    """Constant covariance, so the formula is exact for every noise; λ₁ = 3, so ηλ₁ is 0.03 or 1.65."""
    generator = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    hessian = rotation * torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64) @ rotation.T
    gradients = torch.randn(8, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    risk = quadratic(hessian, gradients)
    dynamics, replicas, steps = ALL[name], 20_000, 12
    start = torch.zeros(3, dtype=torch.float64)
    run = ns.simulate(
        risk, dynamics, start, lr=lr, steps=steps, replicas=replicas, record={}, progress=False, seed=7
    )
    losses = 0.5 * ((run.theta @ hessian) * run.theta).sum(1)
    covariance = dynamics.covariance(risk, start).dense()
    wanted = ns.theory.expected_excess_loss(hessian, covariance, lr=lr, steps=steps)
    error = losses.std() / math.sqrt(replicas)
    assert (losses.mean() - wanted).abs() <= 4 * error + 1e-15


@pytest.mark.parametrize("name", NOISY)
def test_replicas_draw_independent_noise(name, regression, theta):
    dynamics = ALL[name]
    replicas = theta.expand(4000, -1)
    noisy, _ = dynamics.noisy_gradient(
        regression, replicas, dynamics.init(regression), torch.Generator().manual_seed(0)
    )
    noise = noisy - regression.gradient(theta)
    half = len(noise) // 2
    correlation = (noise[:half] * noise[half:]).sum(1)
    assert correlation.mean().abs() <= 4 * correlation.std() / math.sqrt(half)


@pytest.mark.parametrize(
    "name",
    [name for name in ALL if isinstance(ALL[name].covariance(dynamics_cases.regression(), AT.theta), HeldOperator)],
)
def test_covariance_of_replicas_is_the_covariance_of_each(name, regression):
    thetas = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dynamics = ALL[name]
    together = dynamics.covariance(regression, thetas)
    for row, theta in enumerate(thetas):
        torch.testing.assert_close(
            together.replica(row).dense(),
            dynamics.covariance(regression, theta).dense(),
            rtol=1e-9,
            atol=1e-12,
        )


def test_every_dynamics_runs_on_a_model_and_keeps_its_covariance():
    """On a network: claimed covariance against the dense one built from per-sample gradients."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    data = (torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,)))
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    theta = risk.parameters()
    rows = risk.per_sample_gradients(theta)
    sigma = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / 30 / 5
    for name in ns.DYNAMICS:
        dynamics = ns.dynamics_by_name(name, batch_size=5, k=4, rho=0.1, strength=0.01)
        run = ns.simulate(risk, dynamics, theta, lr=0.1, steps=3, progress=False)
        assert torch.isfinite(run.theta).all()
        found = dynamics.covariance(risk, theta).dense()
        if name in ("sgd", "gld-full"):
            torch.testing.assert_close(found, sigma, rtol=1e-9, atol=1e-12)
        elif name not in ("gd", "gd-gradient-penalty", "gld-constant", "gld-leading"):
            torch.testing.assert_close(found.trace(), sigma.trace(), rtol=1e-9, atol=1e-12)
        if name == "gld-leading":
            values, vectors = torch.linalg.eigh(sigma)
            best = vectors[:, -4:] * values[-4:] @ vectors[:, -4:].T
            torch.testing.assert_close(found, best, rtol=1e-8, atol=1e-12)
