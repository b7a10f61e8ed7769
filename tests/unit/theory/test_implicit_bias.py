"""Label noise by enumeration of batches and signs, its drift along the minima, and what it recovers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import noisescape as ns
from cases import F64, generator, normal
from noisescape.dynamics.label_noise import LabelNoise
from noisescape.theory.implicit_bias import (
    QuadraticRegression,
    label_noise_penalty,
    quadratic_regression,
    recovery,
)

DELTA = 0.7
TINY = quadratic_regression(3, 1, 4, seed=2)
THETA = torch.tensor([0.9, -0.4, 1.3], dtype=F64)


def outputs(v: Tensor, problem: QuadraticRegression = TINY) -> Tensor:
    return problem.inputs @ v.square()


def all_gradients(theta: Tensor, batch_size: int) -> Tensor:
    """The batch gradient for every choice of samples and signs, by autograd: all equally likely."""
    choices = list(itertools.product(range(len(TINY.inputs)), (DELTA, -DELTA)))
    found = []
    for batch in itertools.product(choices, repeat=batch_size):
        leaf = theta.clone().requires_grad_()
        predicted = outputs(leaf)
        loss = sum(((predicted[n] - TINY.targets[n] - noise) ** 2 / 4 for n, noise in batch), torch.zeros(()))
        found.append(torch.autograd.grad(loss / batch_size, leaf)[0])
    return torch.stack(found)


def jacobian(theta: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(outputs, theta)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_mean_and_covariance_are_those_of_all_batches_and_signs(batch_size: int) -> None:
    """Cov ε = Σ_B + (c²δ²/B)·JᵀJ/N with c = ½, and E ε = 0."""
    found = all_gradients(THETA, batch_size)
    mean, centred = found.mean(0), found - found.mean(0)
    enumerated = centred.T @ centred / len(found)
    rows = jacobian(THETA)
    minibatch = TINY.risk.noise_covariance(THETA, batch_size).dense()
    closed = minibatch + DELTA**2 / 4 / batch_size * rows.T @ rows / len(rows)
    claimed = TINY.label_noise(DELTA, batch_size).covariance(TINY.risk, THETA).dense()
    assert_close(mean, TINY.risk.gradient(THETA), rtol=1e-12, atol=1e-12)
    assert_close(enumerated, closed, rtol=1e-12, atol=1e-12)
    assert_close(claimed, closed, rtol=1e-12, atol=1e-12)


def test_at_an_interpolating_point_the_noise_is_the_hessian() -> None:
    """Cov ε = (cδ²/B)·H, while minibatch noise is gone."""
    assert_close(TINY.risk.noise_covariance(TINY.truth, 1).dense(), torch.zeros(3, 3, dtype=F64))
    found = TINY.label_noise(DELTA, 2).covariance(TINY.risk, TINY.truth).dense()
    assert_close(found, DELTA**2 / 4 * TINY.risk.hessian(TINY.truth).dense(), rtol=1e-12, atol=1e-12)


def test_what_is_drawn_has_the_enumerated_law() -> None:
    """With B = 1 there are 2N gradients, each as likely as the others, and replicas have batches of their own."""
    count = 16_000
    dynamics = TINY.label_noise(DELTA)
    theta = THETA.expand(count, -1)
    drawn, _ = dynamics.noisy_gradient(TINY.risk, theta, dynamics.init(TINY.risk), generator(5))
    distance = (drawn[:, None] - all_gradients(THETA, 1)).norm(dim=-1)
    assert float(distance.min(1).values.max()) < 1e-12
    frequency = torch.bincount(distance.argmin(1), minlength=8)
    chi_square = float((frequency - count / 8).square().sum() / (count / 8))
    assert chi_square < 18.5  # 99 % of chi-square with 7 degrees of freedom


def test_of_a_model_the_perturbed_risk_is_its_own_with_other_data() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = normal(5, 2, seed=1), normal(5, 1, seed=2)
    risk = ns.EmpiricalRisk(model, nn.MSELoss(reduction="none"), (x, y))
    perturbed = risk.with_data((torch.cat([x, x]), torch.cat([y + DELTA, y - DELTA])))
    theta = risk.parameters()
    found = LabelNoise(2, perturbed).covariance(risk, theta).dense()
    curvature = 2.0  # of (f − y)²
    wanted = risk.noise_covariance(theta, 2) + risk.gauss_newton(theta) * (curvature * DELTA**2 / 2)
    assert_close(found, wanted.dense(), rtol=1e-10, atol=1e-12)


def test_perturbed_samples_of_another_risk_are_refused() -> None:
    own = TINY.label_noise(DELTA)
    with pytest.raises(ValueError, match="4 samples twice"):
        LabelNoise(1, TINY.risk).check(TINY.risk)
    other = QuadraticRegression(TINY.inputs, TINY.targets + normal(4, seed=9), TINY.truth, TINY.start)
    with pytest.raises(ValueError, match="in the risk's order"):
        own.check(other.risk)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        TINY.label_noise(DELTA, 0).check(TINY.risk)


def test_a_loss_that_is_no_square_in_the_label_is_refused() -> None:
    """Of |f − y| the mean gradient changes with the labels' noise."""

    def risk(targets: Tensor) -> ns.EmpiricalRisk:
        data = torch.stack([TINY.inputs.repeat(len(targets) // 4, 1)[:, 0], targets], dim=1)
        return ns.EmpiricalRisk.from_sample_loss(
            lambda w, s: (w[..., 0] * s[..., 0] - s[..., 1]).abs(), data, torch.ones(1, dtype=F64)
        )

    y = TINY.targets
    with pytest.raises(ValueError, match="must be a square in the label"):
        LabelNoise(1, risk(torch.cat([y + 2, y - 2]))).check(risk(y))


def test_a_run_goes_on_only_with_the_labels_it_began_with(tmp_path: Path) -> None:
    def run(delta: float, steps_until: int | None, checkpoint: Path | None) -> ns.Trajectory:
        def stop(done: int) -> None:
            if done == steps_until:
                raise KeyboardInterrupt

        return ns.simulate(
            TINY.risk,
            TINY.label_noise(delta),
            TINY.start,
            lr=0.01,
            steps=30,
            replicas=2,
            checkpoint=checkpoint,
            checkpoint_seconds=0,
            progress=False,
            on_step=stop,
        )

    kept = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(DELTA, 20, kept)
    with pytest.raises(ValueError, match="dynamics"):
        run(2 * DELTA, None, kept)
    assert torch.equal(run(DELTA, None, kept).theta, run(DELTA, None, None).theta)


# ---------------------------------------------------------------------- the drift along the minima

X1, X2 = 1.0, 3.0


def scaled_loss(curvature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(c/2)(f − y)² of f = x₁v₁² + x₂v₂²; of each sample only y is kept."""
    return lambda v, y: curvature / 2 * (X1 * v[..., 0] ** 2 + X2 * v[..., 1] ** 2 - y) ** 2


def invariant(v: Tensor) -> Tensor:
    """x₂ log v₁ − x₁ log v₂: gradient flow does not change it, so it says where on the minima the flow ends."""
    return X2 * v[..., 0].log() - X1 * v[..., 1].log()


def drift(lr: float, delta: float, curvature: float, steps: int) -> float:
    """The mean change of the invariant a step from a minimum, over all sequences of signs."""
    start = torch.tensor([0.6, 0.5], dtype=F64)
    y = X1 * start[0] ** 2 + X2 * start[1] ** 2
    risk = ns.EmpiricalRisk.from_sample_loss(scaled_loss(curvature), y[None], start)
    perturbed = ns.EmpiricalRisk.from_sample_loss(
        scaled_loss(curvature), torch.stack([y + delta, y - delta]), start
    )
    LabelNoise(1, perturbed).check(risk)
    signs = torch.tensor(list(itertools.product((0, 1), repeat=steps)))
    theta = start.expand(len(signs), -1)
    for step in range(steps):
        theta = theta - lr * perturbed.minibatch_gradient(theta, signs[:, step : step + 1])
    return float(invariant(theta).mean() - invariant(start)) / steps


def predicted_drift(lr: float, delta: float, curvature: float) -> float:
    """−η∇I·s∇Tr H, with derivatives by autograd."""
    start = torch.tensor([0.6, 0.5], dtype=F64)
    y = X1 * start[0] ** 2 + X2 * start[1] ** 2

    def hessian_trace(v: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(
            lambda w: scaled_loss(curvature)(w, y), v, create_graph=True
        ).trace()

    toward = torch.autograd.functional.jacobian(hessian_trace, start)
    across = torch.autograd.functional.jacobian(invariant, start)
    strength = label_noise_penalty(lr=lr, delta=delta, batch_size=1, curvature=curvature)
    return float(-lr * strength * across @ toward)


@pytest.mark.parametrize("curvature", [0.5, 2.0])
def test_along_the_minima_it_drifts_down_the_hessians_trace(curvature: float) -> None:
    """The mean over all 512 sequences of signs is −ηs∇Tr H.

    What is left falls with η² in so few steps: E(f − y)², which adds to δ², has only begun to grow.
    """
    errors = []
    for lr in (0.005, 0.0025, 0.00125):
        rate = lr / (2 * curvature)
        found = drift(rate, 0.3, curvature, steps=9)
        errors.append(found / predicted_drift(rate, 0.3, curvature) - 1)
    assert 0 < errors[-1] < 3e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


# ---------------------------------------------------------------------- the penalty


def test_the_penalty_is_the_trace_of_the_gauss_newton_matrix() -> None:
    strength = 0.3

    def objective(v: Tensor) -> Tensor:
        rows = torch.autograd.functional.jacobian(outputs, v, create_graph=True)
        losses = (outputs(v) - TINY.targets).square() / 4
        return losses.mean() + strength * 0.5 * rows.square().sum(1).mean()

    risk = TINY.penalised(strength)
    assert_close(risk.loss(THETA), objective(THETA), rtol=1e-12, atol=0)
    wanted = torch.autograd.functional.jacobian(objective, THETA)
    assert_close(risk.gradient(THETA), wanted, rtol=1e-12, atol=1e-12)
    at_minimum = (risk.loss(TINY.truth) - TINY.risk.loss(TINY.truth)) / strength
    assert_close(at_minimum, TINY.risk.hessian(TINY.truth).dense().trace(), rtol=1e-12, atol=0)


def test_constants_that_make_no_sense_are_refused() -> None:
    for bad in ((3, 0, 4), (3, 4, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="must"):
            quadratic_regression(*bad)
    with pytest.raises(ValueError, match="start must not be 0"):
        quadratic_regression(3, 1, 4, start=0.0)
    with pytest.raises(ValueError, match="take SGD"):
        TINY.label_noise(0.0)
    with pytest.raises(ValueError, match="strength"):
        TINY.penalised(-1.0)
    with pytest.raises(ValueError, match="lr must be positive"):
        label_noise_penalty(lr=0.0, delta=1.0, batch_size=1)


# ---------------------------------------------------------------------- what is recovered

LR, STEPS = 0.025, 12_000
PROBLEM = quadratic_regression(40, 3, 20, seed=0)


def cooling(step: int) -> float:
    """Constant, then falling to 0 over the last 40 %: what is left of the noise dies out."""
    return LR * min(1.0, (1 - step / STEPS) / 0.4)


def errors_after(risk: ns.EmpiricalRisk, dynamics: ns.Dynamics, replicas: int = 1) -> Tensor:
    run = ns.simulate(
        risk, dynamics, PROBLEM.start, lr=cooling, steps=STEPS, replicas=replicas, record={}, seed=1, progress=False
    )
    return recovery(run.theta, PROBLEM.truth).nan_to_num(math.inf)


@pytest.mark.slow
def test_label_noise_recovers_the_truth() -> None:
    assert float(errors_after(PROBLEM.risk, PROBLEM.label_noise(1.0), replicas=4).max()) < 0.1


def test_gradient_descent_fits_but_does_not_recover() -> None:
    run = ns.simulate(PROBLEM.risk, ns.GD(), PROBLEM.start, lr=LR, steps=3_000, record={}, progress=False)
    assert float(PROBLEM.risk.loss(run.theta)) < 1e-6
    assert float(recovery(run.theta, PROBLEM.truth)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("rho", [1.0, 0.27])
def test_spherical_noise_as_large_does_not_recover(rho: float) -> None:
    """ρ² = Tr Σ/d: of label noise δ²·mean v_i², which is 1 at the start and 3/40 at the truth."""
    assert float(errors_after(PROBLEM.risk, ns.GLDConstant(rho), replicas=4).min()) > 0.5


@pytest.mark.slow
def test_descent_with_the_explicit_penalty_recovers_without_noise() -> None:
    strength = label_noise_penalty(lr=LR, delta=1.0, batch_size=1)
    assert float(errors_after(PROBLEM.penalised(strength), ns.GD())) < 0.1
