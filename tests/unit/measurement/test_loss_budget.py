"""The expected change of the loss in a step, against all batches that the step might draw."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from cases import F64, WIDER, Case, classes, normal, symmetric
from noisescape.linops import DenseOperator
from noisescape.measurement import drawn_loss_change, loss_budget
from noisescape.risk import EmpiricalRisk
from noisescape.theory.landscapes import quadratic
from slowness import quick

N, B = 7, 3
HESSIAN = symmetric(4, torch.tensor([3.0, 1.0, 0.4, -0.5]), seed=1)
HERE = normal(4, seed=3)
SMALL = Case(
    lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
    normal(N, 2, seed=1),
    classes(N, of=2, seed=2),
)

by_law = pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])


def batches(replacement: bool) -> Tensor:
    chosen = itertools.product(range(N), repeat=B) if replacement else itertools.combinations(range(N), B)
    return torch.tensor(list(chosen))


def enumerated(risk: EmpiricalRisk, theta: Tensor, lr: float, replacement: bool) -> float:
    """E L(θ') − L(θ) over every batch there is."""
    rows = risk.per_sample_gradients(theta)
    steps = theta - lr * rows[batches(replacement)].mean(1)
    return float(torch.stack([risk.loss(step) for step in steps]).mean() - risk.loss(theta))


@by_law
@pytest.mark.parametrize("lr", [0.01, 0.3, 1.7])
def test_the_budget_of_a_quadratic_leaves_nothing_over(lr: float, replacement: bool) -> None:
    """Whatever the size of the step, and where H is indefinite."""
    rows = normal(N, 4, seed=2)
    risk = quadratic(HESSIAN, rows)
    found = loss_budget(risk, HERE, lr=lr, batch_size=B, replacement=replacement)
    expected = enumerated(risk, HERE, lr, replacement)
    assert found.change.value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    gradient = HESSIAN @ HERE
    covariance = torch.cov(rows.T, correction=0) * (1 / B if replacement else (N - B) / (B * (N - 1)))
    terms = (
        (found.descent, -lr * gradient @ gradient),
        (found.curvature, lr**2 / 2 * gradient @ HESSIAN @ gradient),
        (found.noise, lr**2 / 2 * (HESSIAN @ covariance).trace()),
    )
    for term, value in terms:
        assert term.value == pytest.approx(float(value), rel=1e-11)
        assert term.stderr == 0
    assert found.balance.value == pytest.approx(float(terms[2][1] / -(terms[0][1] + terms[1][1])), rel=1e-11)


@by_law
def test_what_a_network_leaves_over_shrinks_with_the_third_power_of_the_step(
    replacement: bool,
) -> None:
    risk = SMALL.risk()
    rates = [0.04, 0.02, 0.01, 0.005]
    over = [
        enumerated(risk, SMALL.theta, lr, replacement)
        - loss_budget(risk, SMALL.theta, lr=lr, batch_size=B, replacement=replacement).change.value
        for lr in rates
    ]
    powers = [math.log2(one / next_) for one, next_ in itertools.pairwise(over)]
    assert powers[-1] == pytest.approx(3, abs=0.05)
    assert abs(powers[-1] - 3) < abs(powers[0] - 3)
    # a wrong 1/B or η would leave a term of second order, and the power would be 2
    assert abs(over[-1]) < 0.01 * loss_budget(risk, SMALL.theta, lr=rates[-1], batch_size=B).noise.value


@pytest.mark.usefixtures("by_probes")
def test_the_error_of_the_noise_is_that_of_its_trace() -> None:
    risk, lr = WIDER.risk(), 0.2
    for seed in range(5):
        found = loss_budget(risk, WIDER.theta, lr=lr, batch_size=4, rtol=0.05, seed=seed)
        exact = lr**2 / 2 * float((WIDER.hessian() * WIDER.covariance()).sum()) / 4
        assert 0 < found.noise.stderr <= 0.05 * abs(found.noise.value)
        assert abs(found.noise.value - exact) < 4.5 * found.noise.stderr
        assert found.change.stderr == found.noise.stderr
        assert found.descent.stderr == found.curvature.stderr == 0


def test_the_balance_scales_with_the_noise_alone() -> None:
    risk = quadratic(HESSIAN @ HESSIAN, normal(N, 4, seed=2))
    one, five = (loss_budget(risk, HERE, lr=0.01, batch_size=size) for size in (1, 5))
    assert one.balance.value == pytest.approx(5 * five.balance.value, rel=1e-12)
    assert one.descent == five.descent
    mirrored = torch.stack([HERE, -HERE])  # whose mean is 0 to the last bit
    at_rest = loss_budget(quadratic(HESSIAN, mirrored), torch.zeros(4, dtype=F64), lr=0.01, batch_size=1)
    assert at_rest.balance.value == math.inf
    assert at_rest.change == at_rest.noise


def test_another_hessian_may_be_given() -> None:
    risk = quadratic(HESSIAN, normal(N, 4, seed=2))
    given = loss_budget(risk, HERE, lr=0.1, batch_size=B, hessian=DenseOperator(2 * HESSIAN))
    own = loss_budget(risk, HERE, lr=0.1, batch_size=B)
    assert given.noise.value == pytest.approx(2 * own.noise.value, rel=1e-12)
    assert given.curvature.value == pytest.approx(2 * own.curvature.value, rel=1e-12)
    assert given.descent == own.descent


@pytest.mark.parametrize(
    ("lr", "replacement"), quick([(0.05, True)], itertools.product([0.05, 0.8], [False, True]))
)
def test_the_change_of_drawn_steps_is_that_of_all_batches(lr: float, replacement: bool) -> None:
    """Within its error, also where the second order is far off; and its interval is no wider than it must be."""
    risk = SMALL.risk()
    exact = enumerated(risk, SMALL.theta, lr, replacement)
    scores = []
    for seed in range(12):
        found = drawn_loss_change(
            risk, SMALL.theta, lr=lr, batch_size=B, replacement=replacement, draws=60, seed=seed
        )
        scores.append((found.value - exact) / found.stderr)
        assert found.cost == 61
        assert 5 < found.dof <= 59  # fewer than n − 1 where the changes are skewed
    assert max(map(abs, scores)) < 4.5
    assert 0.3 < sum(score**2 for score in scores) / len(scores) < 2.5
    if lr < 0.1:  # the standard error would be this without the chance that is taken out, to first order
        gradient = risk.gradient(SMALL.theta)
        along = risk.noise_covariance(SMALL.theta, B, replacement=replacement) @ gradient
        assert found.stderr < 0.5 * lr * float(gradient @ along / 60) ** 0.5


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan])
def test_a_step_that_is_none_is_refused(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be positive, not"):
        loss_budget(quadratic(HESSIAN, normal(N, 4)), HERE, lr=lr, batch_size=B)


def test_a_batch_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 8 exceeds the 7 samples"):
        loss_budget(quadratic(HESSIAN, normal(N, 4)), HERE, lr=0.1, batch_size=8, replacement=False)


def test_drawn_steps_are_refused_where_they_make_no_sense() -> None:
    risk = quadratic(HESSIAN, normal(N, 4))
    with pytest.raises(ValueError, match="lr must be positive"):
        drawn_loss_change(risk, HERE, lr=0.0, batch_size=B)
    with pytest.raises(ValueError, match="draws = 1, but a standard error needs at least 2"):
        drawn_loss_change(risk, HERE, lr=0.1, batch_size=B, draws=1)
    with pytest.raises(ValueError, match="batch_size = 8 exceeds the 7 samples"):
        drawn_loss_change(risk, HERE, lr=0.1, batch_size=8, replacement=False)
