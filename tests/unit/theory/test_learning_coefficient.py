"""λ̂ against the exact mean of what is sampled, and chains of known correlation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata
from torch import Tensor, nn

import noisescape as ns
from cases import F64, normal
from noisescape.theory import landscapes
from noisescape.theory.chains import chain_mean, effective_sample_size, split_r_hat
from noisescape.theory.learning_coefficient import (
    LearningCoefficient,
    expected_on_quadratic,
    local_learning_coefficient,
)

CURVATURES = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5], dtype=F64)
REGULAR = landscapes.quadratic(torch.diag(CURVATURES), torch.zeros(100, 5, dtype=F64))


def sampled(risk: ns.EmpiricalRisk, theta: Tensor | None = None, **options: Any) -> LearningCoefficient:
    return local_learning_coefficient(
        risk, risk.parameters() if theta is None else theta, progress=False, **options
    )


def flat(loss: Callable[[Tensor], Tensor], dimension: int) -> ns.EmpiricalRisk:
    """L of a formula, of two equal samples."""
    start = torch.zeros(dimension, dtype=F64)
    return ns.EmpiricalRisk.from_sample_loss(lambda w, x: loss(w) + 0 * x, torch.zeros(2, dtype=F64), start)


def assert_within(found: LearningCoefficient, exact: float, *, relative: float) -> None:
    """Within three standard errors, and those small enough to tell something."""
    assert abs(found.estimate.value - exact) < 3 * found.estimate.stderr
    assert found.estimate.stderr < relative * exact
    assert not found.doubts


# ---------------------------------------------------------------------- regular minima


@pytest.mark.slow
@pytest.mark.parametrize(("localisation", "lr"), [(0.1, 0.005), (20.0, 0.02)], ids=["faithful", "biased"])
def test_at_a_regular_minimum_it_is_the_closed_form_biases_included(localisation: float, lr: float) -> None:
    found = sampled(REGULAR, localisation=localisation, lr=lr, chains=50, steps=3_000)
    exact = expected_on_quadratic(CURVATURES, scale=found.scale, localisation=localisation, lr=lr)
    assert found.scale == pytest.approx(100 / math.log(100))
    assert_within(found, exact, relative=0.02)


def test_its_closed_form_is_half_the_dimension_but_for_localisation_and_step() -> None:
    """½h/(h + γ) a direction, times the 1/(1 − εH/4) by which the recursion of the variance misses 1/H."""
    assert expected_on_quadratic(CURVATURES, scale=1.0, localisation=0.0) == 2.5
    assert expected_on_quadratic(torch.tensor([3.0, 0.0]), scale=2.0, localisation=0.0, lr=0.1) == pytest.approx(
        0.5 / (1 - 0.1 * 6 / 4)
    )
    total, lr, scale, localisation = 0.0, 0.05, 7.0, 3.0
    for curvature in CURVATURES.tolist():
        stiffness, variance = scale * curvature + localisation, 0.0
        for _ in range(500):
            variance = (1 - lr * stiffness / 2) ** 2 * variance + lr
        total += scale * curvature * variance / 2
    found = expected_on_quadratic(CURVATURES, scale=scale, localisation=localisation, lr=lr)
    assert found == pytest.approx(total, rel=1e-10)


@pytest.mark.slow
def test_the_oracle_tells_the_bias_of_a_long_step() -> None:
    """At ε(Nβh + γ) up to 1.3 the chains are wider than the density: more than eight standard errors."""
    found = sampled(REGULAR, localisation=1.0, lr=0.0146, chains=50, steps=3_000)
    density = expected_on_quadratic(CURVATURES, scale=found.scale, localisation=1.0)
    assert found.estimate.value - density > 8 * found.estimate.stderr


@pytest.mark.slow
def test_minibatches_add_their_noise() -> None:
    """A step's variance is ε + (ε²N²β²/4)Σ_B, in one direction of curvature 1."""
    gradients = normal(20, 1, seed=3)
    bowl = landscapes.quadratic(torch.eye(1, dtype=F64), gradients)
    lr, batch, localisation = 0.1, 4, 1.0
    found = sampled(bowl, localisation=localisation, lr=lr, chains=50, steps=4_000, batch_size=batch)
    noise = float(bowl.noise_covariance(torch.zeros(1, dtype=F64), batch).trace())
    stiffness = found.scale + localisation
    variance = (lr + (lr * found.scale / 2) ** 2 * noise) / (1 - (1 - lr * stiffness / 2) ** 2)
    full = expected_on_quadratic(torch.ones(1), scale=found.scale, localisation=localisation, lr=lr)
    assert_within(found, found.scale * variance / 2, relative=0.02)
    assert found.estimate.value > full + 10 * found.estimate.stderr


@pytest.mark.slow
def test_of_a_rank_deficient_linear_model_it_is_half_the_rank() -> None:
    """Two of five directions count; the three flat ones only random-walk as far as γ lets them."""
    inputs = normal(20, 2, seed=1) @ normal(2, 5, seed=2)
    data = torch.cat([inputs, inputs @ torch.ones(5, 1, dtype=F64)], dim=1)

    def loss(w: Tensor, sample: Tensor) -> Tensor:
        return ((w * sample[..., :5]).sum(-1) - sample[..., 5]).square() / 2

    risk = ns.EmpiricalRisk.from_sample_loss(loss, data, torch.ones(5, dtype=F64))
    values = torch.linalg.eigvalsh(inputs.T @ inputs / 20).clamp_min(0)
    options = {"localisation": 0.05, "lr": 0.5 / (20 / math.log(20) * float(values[-1]))}
    found = sampled(risk, **options, chains=50, steps=3_000)
    assert expected_on_quadratic(values, scale=found.scale, localisation=1e-6) == pytest.approx(1, rel=1e-5)
    assert_within(found, expected_on_quadratic(values, scale=found.scale, **options), relative=0.02)


# ---------------------------------------------------------------------- singular minima, by quadrature


def on_a_line(loss: Callable[[np.ndarray], np.ndarray], scale: float, localisation: float, lr: float) -> float:
    """E NβL of the chain itself: the stationary law of its kernel on a grid."""
    grid, spacing = np.linspace(-2, 2, 801, retstep=True)
    slope = (loss(grid + 1e-5) - loss(grid - 1e-5)) / 2e-5
    mean = grid - lr / 2 * (scale * slope + localisation * grid)
    kernel = np.exp(-((grid[:, None] - mean) ** 2) / (2 * lr)) * spacing / math.sqrt(2 * math.pi * lr)
    law = np.exp(-scale * loss(grid) - localisation / 2 * grid**2)
    law /= law.sum()
    for _ in range(200):
        law = kernel @ law
    return float(scale * (loss(grid) * law).sum() / law.sum())


def on_a_plane(
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scale: float,
    localisation: float,
    centre: tuple[float, float] = (0, 0),
) -> float:
    """E NβL under exp(−NβL − (γ/2)‖θ′ − θ‖²)."""
    offsets = np.linspace(-1, 1, 1201) * 6 / math.sqrt(localisation)
    x, y = np.meshgrid(offsets, offsets)
    tempered = scale * loss(centre[0] + x, centre[1] + y)
    weights = np.exp(-tempered - localisation / 2 * (x**2 + y**2))
    return float((tempered * weights).sum() / weights.sum())


@pytest.mark.slow
def test_of_a_quartic_it_is_a_quarter() -> None:
    scale, localisation, lr = 100.0, 0.1, 0.01
    found = sampled(
        flat(lambda w: w[..., 0] ** 4, 1),
        localisation=localisation,
        lr=lr,
        chains=50,
        steps=6_000,
        inverse_temperature=scale / 2,
    )
    exact = on_a_line(lambda x: x**4, scale, localisation, lr)
    assert_within(found, exact, relative=0.02)
    # what else is between it and 1/4 is γ, which vanishes, and the step
    assert on_a_line(lambda x: x**4, scale, 1e-6, 1e-4) == pytest.approx(0.25, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_of_a_crossing_of_two_valleys_it_is_a_half_but_for_the_logarithm(scale: float) -> None:
    """L = x²y²: λ = ½, m = 2, so λ̂ comes from below as 1/log Nβ goes."""
    localisation = 10.0
    found = sampled(
        flat(lambda w: (w[..., 0] * w[..., 1]) ** 2, 2),
        localisation=localisation,
        lr=2e-3 / math.sqrt(scale / 10),
        chains=50,
        burn_in=1_000,
        steps=12_000,
        every=4,
        inverse_temperature=scale / 2,
    )
    exact = on_a_plane(lambda x, y: (x * y) ** 2, scale, localisation)
    assert_within(found, exact, relative=0.05)
    assert exact < 0.5


def test_the_logarithm_is_what_is_missing_from_a_half() -> None:
    """½ − λ̂ is 1/(log Nβ + const), its inverse grows as log Nβ does."""
    gaps = [1 / (0.5 - on_a_plane(lambda x, y: (x * y) ** 2, scale, 10.0)) for scale in (3e3, 1e4)]
    assert (gaps[1] - gaps[0]) / math.log(1e4 / 3e3) == pytest.approx(1, rel=0.1)


@pytest.mark.slow
def test_of_a_users_own_model_of_two_linear_layers() -> None:
    """1-1-1, y ≈ abx with ab ≠ 0: one direction counts, along a curve of minima."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x = normal(40, 1, seed=1)
    y = 0.6 * x + 0.3 * normal(40, 1, seed=2)
    risk = ns.EmpiricalRisk(model, nn.MSELoss(reduction="none"), (x, y))
    slope = float((x * y).sum() / x.square().sum())
    theta = torch.tensor([0.8, slope / 0.8], dtype=F64)
    localisation = 4.0
    found = sampled(risk, theta, localisation=localisation, lr=4e-3, chains=40, steps=3_000, every=3, seed=1)
    moments = [float(each.mean()) for each in (x * x, x * y, y * y)]

    def excess(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return moments[0] * (a * b) ** 2 - 2 * moments[1] * a * b + moments[1] ** 2 / moments[0]

    exact = on_a_plane(excess, found.scale, localisation, (0.8, slope / 0.8))
    assert_within(found, exact, relative=0.05)
    assert exact == pytest.approx(0.5, abs=0.15)


# ---------------------------------------------------------------------- the error bar


@pytest.mark.slow
def test_the_interval_covers_the_exact_mean() -> None:
    """1,000 runs of four chains, sampled as one of 4,000; the error of counting alone is 0.7 %."""
    options = {"localisation": 1.0, "lr": 0.02}
    bowl = landscapes.quadratic(torch.diag(CURVATURES[:2]), torch.zeros(2, 2, dtype=F64))
    found = sampled(bowl, **options, inverse_temperature=6.0, chains=4_000, steps=500, burn_in=150)
    exact = expected_on_quadratic(CURVATURES[:2], scale=found.scale, **options)
    draws = found.scale * (found.losses - found.loss)
    intervals = [chain_mean(four).estimate.interval() for four in draws.split(4)]
    share = sum(low < exact < high for low, high in intervals) / len(intervals)
    assert 0.93 < share < 0.975


def autoregressive(chains: int, length: int, memory: float, seed: int) -> Tensor:
    """x ← ρx + √(1 − ρ²)z, from its stationary law."""
    noise = normal(length, chains, seed=seed)
    draws = [noise[0]]
    for row in noise[1:]:
        draws.append(memory * draws[-1] + math.sqrt(1 - memory**2) * row)
    return torch.stack(draws, dim=1)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9, -0.5])
def test_the_effective_sample_size_is_that_of_known_autocorrelations(memory: float) -> None:
    """Autocorrelations ρ^t: MT(1 − ρ)/(1 + ρ) draws."""
    chains = autoregressive(50, 4_000, memory, seed=1)
    assert effective_sample_size(chains) == pytest.approx(chains.numel() * (1 - memory) / (1 + memory), rel=0.1)
    estimate = chain_mean(chains).estimate
    assert abs(estimate.value) < 3 * estimate.stderr
    assert split_r_hat(chains) < 1.01


def slowly(chains: np.ndarray) -> tuple[float, float]:
    """Effective sample size and R̂ as they are defined, with SciPy's ranks and sums over every lag."""
    count, half = 2 * len(chains), chains.shape[1] // 2
    halves = chains[:, -2 * half :].reshape(count, half)

    def variances(values: np.ndarray) -> tuple[float, float]:
        within = float(np.mean([row.var(ddof=1) for row in values]))
        return within, (half - 1) / half * within + float(values.mean(1).var(ddof=1))

    def r_hat(values: np.ndarray) -> float:
        scores = norm.ppf((rankdata(values, axis=None) - 3 / 8) / (values.size + 1 / 4)).reshape(values.shape)
        within, total = variances(scores)
        return math.sqrt(total / within)

    within, total = variances(halves)
    centred = halves - halves.mean(1, keepdims=True)
    correlations = [1.0]
    for lag in range(1, half):
        shared = float(np.mean([row[lag:] @ row[:-lag] / half for row in centred]))
        correlations.append(1 - (within - shared) / total)
    time, least = -1.0, math.inf
    for even, odd in zip(correlations[::2], correlations[1::2], strict=False):
        if even + odd < 0:
            break
        least = min(least, even + odd)
        time += 2 * least
    middle = np.sort(halves, axis=None)[(halves.size - 1) // 2]
    return halves.size / time, max(r_hat(halves), r_hat(np.abs(halves - middle)))


@pytest.mark.parametrize("memory", [0.3, 0.9])
def test_both_are_what_their_definitions_say(memory: float) -> None:
    """Also of draws of which many are equal, and of an odd number."""
    for chains in (autoregressive(3, 201, memory, seed=4), (3 * autoregressive(3, 200, memory, seed=5)).round()):
        effective, r_hat = slowly(chains.numpy())
        assert effective_sample_size(chains) == pytest.approx(effective, rel=1e-9)
        assert split_r_hat(chains) == pytest.approx(r_hat, rel=1e-9)


def test_chains_that_disagree_are_worth_few_draws() -> None:
    chains = normal(8, 2_000, seed=1)
    apart = chains + torch.arange(8)[:, None]
    assert split_r_hat(apart) > 2
    assert effective_sample_size(apart) < 16
    wider = torch.cat([chains[:4], 5 * chains[4:]])  # of the same mean: only the distance from the median tells
    assert split_r_hat(wider) > 1.2


def test_a_drift_within_chains_counts_as_disagreement() -> None:
    assert split_r_hat(normal(4, 1_000, seed=1) + torch.linspace(0, 4, 1_000)) > 1.3


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        (torch.zeros(9), "shape"),
        (torch.randn(2, 7), "T ≥ 8"),
        (torch.full((2, 9), 3.0), "nothing was sampled"),
        (torch.tensor([[1.0] * 8, [math.nan] * 8]), "not finite"),
    ],
)
def test_what_are_no_chains_is_refused(chains: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effective_sample_size(chains)


# ---------------------------------------------------------------------- refusals and doubts


def test_chains_that_diverge_are_refused_with_the_mend() -> None:
    with pytest.raises(ns.NoisescapeError, match=r"4 of 4 chains diverged at lr = 1: lower it.*raise steps"):
        sampled(REGULAR, localisation=1.0, lr=1.0)
    with pytest.raises(ValueError, match=r"must be below 4/\(Nβh \+ γ\)"):
        expected_on_quadratic(CURVATURES, scale=20.0, localisation=1.0, lr=1.0)


@pytest.mark.slow
def test_a_start_that_is_no_minimum_is_doubted() -> None:
    """λ̂ is then too low by Nβ(L(θ) − L₀), here to below 0."""
    away = torch.full((5,), 0.5, dtype=F64)
    with pytest.warns(UserWarning, match="θ is no minimum"):
        found = sampled(REGULAR, away, localisation=0.1, lr=0.005, chains=50)
    assert found.shortfall == pytest.approx(found.scale * float(REGULAR.loss(away)), rel=0.1)
    assert found.estimate.value < 0
    assert len(found.doubts) == 1


def test_short_chains_are_doubted() -> None:
    with pytest.warns(UserWarning, match="R̂ = .*not mixed|worth .* error bar is rough") as caught:
        found = sampled(REGULAR, localisation=0.1, lr=1e-5, chains=2, steps=100, burn_in=0)
    assert [str(each.message) for each in caught] == list(found.doubts)
    assert found.r_hat > 1.05
    assert found.effective_sample_size < 100


def test_a_loss_that_no_chain_changes_is_refused() -> None:
    level = ns.EmpiricalRisk.from_sample_loss(lambda w, x: 0 * w[..., 0] + x, torch.ones(3), torch.zeros(2))
    with pytest.raises(ns.NoisescapeError, match="no chain found a loss other than 1"):
        sampled(level, localisation=1.0, lr=0.1, steps=20, burn_in=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"localisation": -1.0}, "localisation must be at least 0"),
        ({"lr": 0.0}, "lr, the variance"),
        ({"burn_in": -1}, "burn_in must"),
        ({"every": 0}, "every must"),
        ({"steps": 20, "every": 5}, "4 draws a chain"),
        ({"chains": 0}, "chains must be at least 1"),
        ({"inverse_temperature": 0.0}, "inverse_temperature must be positive"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"theta": torch.zeros(2, 5, dtype=F64)}, "shape"),
    ],
)
def test_constants_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(REGULAR, **({"localisation": 1.0, "lr": 0.01} | options))


def test_one_sample_has_no_default_temperature() -> None:
    single = ns.EmpiricalRisk.from_sample_loss(lambda w, x: w[..., 0] ** 2 + x, torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="pass inverse_temperature"):
        sampled(single, localisation=1.0, lr=0.01)
