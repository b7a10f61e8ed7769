"""Every figure of every kind of architecture against plain autograd, one sample after the other.

One row of the matrix an architecture, one column a figure. θ is not what the module holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from architectures import ARCHITECTURES
from architectures.reference import BATCH_SIZE, Examined
from noisescape.linops import product_trace
from slowness import quick

LONG = (
    *("gpt2 checkpointed, training", "gpt2 lora by peft", "llama", "t5", "mamba", "mixtral, eager experts"),
    *("bert", "bert lora by peft", "bert, None among the inputs"),
)
"""Others of their kind are among the quick ones."""


@pytest.fixture(params=quick([name for name in ARCHITECTURES if name not in LONG], ARCHITECTURES), scope="module")
def subject(request: pytest.FixtureRequest) -> Examined:
    return ARCHITECTURES[request.param].subject


def agrees(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to a relative error in norm."""
    assert actual.shape == expected.shape
    error = float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-12))
    assert error <= tolerance, f"relative error {error:.2g}"


@contextmanager
def or_refused(subject: Examined) -> Iterator[None]:
    """Where PyTorch has no second derivative, saying so is as good as the right number."""
    try:
        yield
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if subject.architecture.twice_differentiable or "deriv" not in str(error):
            raise
        pytest.skip("PyTorch has no second derivative of this, and the package says so")


def test_losses(subject: Examined) -> None:
    agrees(subject.risk.losses(subject.theta), subject.losses, subject.architecture.tolerance)


def test_gradient(subject: Examined) -> None:
    agrees(subject.risk.gradient(subject.theta), subject.rows.mean(0), subject.architecture.tolerance)


def test_per_sample_gradients(subject: Examined) -> None:
    agrees(subject.risk.per_sample_gradients(subject.theta), subject.rows, subject.architecture.tolerance)


def test_minibatch_gradient(subject: Examined) -> None:
    chosen = torch.tensor([0, len(subject.samples) - 1, 0, 2])
    found = subject.risk.minibatch_gradient(subject.theta, chosen)
    agrees(found, subject.rows[chosen].mean(0), subject.architecture.tolerance)


def test_directional_derivatives(subject: Examined) -> None:
    with or_refused(subject):
        found = subject.risk.jvp(subject.theta, subject.given)
    agrees(found, subject.rows @ subject.directions, subject.architecture.tolerance)


def test_noise_product(subject: Examined) -> None:
    found = subject.risk.noise_covariance(subject.theta, BATCH_SIZE) @ subject.given
    agrees(found, subject.noise_products, subject.architecture.tolerance)


def test_hessian_product_of_a_vector(subject: Examined) -> None:
    with or_refused(subject):
        found = subject.risk.hessian(subject.theta) @ subject.given[:, 0]
    agrees(found, subject.hessian_products[:, 0], subject.architecture.second_tolerance)


def test_hessian_product_of_a_block(subject: Examined) -> None:
    with or_refused(subject):
        found = subject.risk.hessian(subject.theta) @ subject.given
    agrees(found, subject.hessian_products, subject.architecture.second_tolerance)


def test_gauss_newton_product(subject: Examined) -> None:
    if not subject.architecture.gauss_newton:
        pytest.skip("outputs that are not one tensor")
    with or_refused(subject):
        found = subject.risk.gauss_newton(subject.theta) @ subject.given
    agrees(found, subject.gauss_newton_products, subject.architecture.second_tolerance)


def test_indicator(subject: Examined) -> None:
    """Within its standard errors, or exact where it claims to be."""
    hessian, noise = subject.risk.hessian(subject.theta), subject.risk.noise_covariance(subject.theta, BATCH_SIZE)
    with or_refused(subject):
        found = product_trace(hessian, noise, rtol=0.02)
    exact = subject.indicator
    rounding = subject.architecture.second_tolerance * float(
        (subject.centred.T * subject.hessian_columns[:, 3:]).abs().sum()
    )
    assert abs(found.value - exact) <= max(4.5 * found.stderr, rounding)


def test_the_reference_is_at_theta_and_its_second_derivatives_are_those_of_its_first(subject: Examined) -> None:
    """The oracle itself, without the package: against central differences along one direction."""
    loaded = torch.cat([p.detach().reshape(-1) for p in subject.trainable])
    assert torch.equal(loaded, subject.theta.double())
    # along what the losses do not learn, as the embedding of padding, differences would see a gradient
    direction = subject.directions[:, 0] * (subject.rows != 0).any(0)
    expected = sum(subject.difference(*sample, direction) for sample in subject.samples) / len(subject.samples)
    agrees(subject.hessian_products[:, 0], expected, max(1e-5, subject.architecture.second_tolerance))
    assert bool((subject.rows.norm(dim=1) > 0).all())
