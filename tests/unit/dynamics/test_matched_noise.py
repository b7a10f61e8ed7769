"""A matched trace along a trajectory: the inner noise, rescaled."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from dynamics_cases import BATCH, GAUSSIAN


@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_matched_trajectory_draws_the_inner_noise_rescaled(name, network):
    inner, target = GAUSSIAN[name], 0.5
    matched = ns.MatchedTrace(inner, target)
    generators = [torch.Generator().manual_seed(8) for _ in range(2)]
    theta, drift = (
        network.parameters(),
        0.01 * torch.randn(network.dimension, generator=torch.Generator().manual_seed(1)),
    )
    states = [inner.init(network), matched.init(network)]
    for step in range(7):
        point = theta + step * drift
        gradient = network.gradient(point)
        own, states[0] = inner.noisy_gradient(network, point, states[0], generators[0])
        found, states[1] = matched.noisy_gradient(network, point, states[1], generators[1])
        factor = (target / states[0].covariance.trace()).sqrt()
        torch.testing.assert_close(found - gradient, factor * (own - gradient), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(states[1].covariance.trace(), torch.tensor(target, dtype=torch.float64))
        assert torch.equal(*(generator.get_state() for generator in generators)), "no draw more, none less"
    assert matched.name == inner.name


@pytest.mark.parametrize("name", ["dynamic from batches", "diagonal from batches", "leading, sketched"])
def test_matched_replicas_draw_the_inner_noise_rescaled(name, network):
    inner = GAUSSIAN[name]
    matched = ns.MatchedTrace(inner, 0.5)
    thetas = network.parameters() + 0.1 * torch.randn(
        3, network.dimension, generator=torch.Generator().manual_seed(1)
    )
    noises, traces = [], []
    for dynamics in (inner, matched):
        noisy, state = dynamics.noisy_gradient(
            network, thetas, dynamics.init(network), torch.Generator().manual_seed(8)
        )
        noises.append(noisy - network.gradient(thetas))
        traces.append(state.covariance.trace())
    torch.testing.assert_close(traces[1], torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(noises[1], noises[0] * (0.5 / traces[0]).sqrt()[:, None], rtol=1e-6, atol=1e-9)


def test_a_matched_dynamics_asks_for_no_second_gradient(network, monkeypatch):
    """The pass that gives the covariance gives ∇L, which the matched noise keeps."""
    matched = ns.MatchedTrace(ns.GLDDiagonal(BATCH), 1.0)
    theta = network.parameters()
    gradient = network.gradient(theta)
    monkeypatch.setattr(type(network), "gradient", lambda *_: pytest.fail("∇L was there already"))
    _, found = matched.noise(network, theta, None, torch.Generator())
    torch.testing.assert_close(found, gradient)
    matched.noisy_gradient(network, theta, matched.init(network), torch.Generator())
