"""What a trajectory goes on with: refreshed when due, estimated without bias, injected when it should be."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from dynamics_cases import (
    BATCH,
    SPECTRA,
    best_part,
    covariance_of,
    gradients_of,
    regression_losses,
    with_gradients,
)
from noisescape.experiments.published import PublishedLeading


@pytest.mark.parametrize(("name", "interval"), [("gld-diagonal", 3), ("gld-leading", 10)])
def test_covariance_is_recomputed_only_at_refreshes(name, interval, regression, theta):
    dynamics = ns.dynamics_by_name(name, batch_size=BATCH, k=2, refresh=interval)
    state, generator = dynamics.init(regression), torch.Generator().manual_seed(0)
    found = []
    for step in range(2 * interval):
        _, state = dynamics.noisy_gradient(regression, theta + step, state, generator)
        found.append(state.covariance.diagonal())
    for step in range(1, 2 * interval):
        same = torch.equal(found[step], found[step - 1])
        assert same == (step % interval != 0)


@pytest.mark.parametrize("kind", [ns.GLDDiagonal, ns.GLDDynamic])
@pytest.mark.parametrize("replacement", [True, False])
def test_variances_from_batches_are_unbiased(kind, replacement, regression, theta):
    dynamics = kind(BATCH, replacement=replacement, batches=4)
    replicas = theta.expand(20_000, -1)
    found, _ = dynamics.noise(regression, replicas, None, torch.Generator().manual_seed(0))
    squares = found.diagonal()
    wanted = dynamics.covariance(regression, theta).diagonal()
    error = squares.std(0) / len(squares) ** 0.5
    assert ((squares.mean(0) - wanted).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("decay", SPECTRA.values(), ids=SPECTRA)
def test_leading_noise_of_a_trajectory_captures_what_is_said_of_its_sketch(decay):
    gradients = gradients_of(300, 400, decay)
    risk = with_gradients(gradients)
    dynamics = ns.GLDLeading(BATCH, k=12)
    found, gradient = dynamics.noise(risk, risk.parameters(), None, torch.Generator())
    share = found.trace() / best_part(covariance_of(gradients), 12).trace()
    assert (0.9 if decay == 0 else 0.99) < share <= 1 + 1e-12
    torch.testing.assert_close(gradient, gradients.mean(0))


def test_published_leading_noise_is_injected_on_refresh_steps_only(network):
    dynamics = ns.MatchedTrace(PublishedLeading(BATCH, k=3, refresh=3), 1.0)
    theta, generator = network.parameters(), torch.Generator().manual_seed(0)
    state, gradient = dynamics.init(network), network.gradient(network.parameters())
    quiet = []
    for _ in range(7):
        noisy, state = dynamics.noisy_gradient(network, theta, state, generator)
        quiet.append(torch.equal(noisy, gradient))
    assert quiet == [step % 3 != 0 for step in range(7)]


def test_sgd_without_replacement_never_repeats_a_sample(regression):
    dynamics = ns.SGD(4, replacement=False)
    indices = dynamics.draw_batch(regression, torch.Size([2000]), torch.Generator().manual_seed(0))
    assert all(len(set(batch)) == 4 for batch in indices.tolist())
    counts = torch.bincount(indices.flatten(), minlength=9)
    assert ((counts - 2000 * 4 / 9).abs() < 5 * (2000 * 4 / 9) ** 0.5).all()


def test_gradient_penalty_descends_the_penalised_risk(regression, theta):
    strength = 0.05

    def penalised(point):
        value = regression_losses(point).mean()
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        return value + strength * gradient @ gradient

    point = theta.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(penalised(point), point)
    dynamics = ns.GDGradientPenalty(strength)
    found, _ = dynamics.noisy_gradient(regression, theta, dynamics.init(regression), torch.Generator())
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not dynamics.covariance(regression, theta).dense().any()
