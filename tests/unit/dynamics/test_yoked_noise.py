"""Noise yoked to another run's: at every step the trace it is given, in the inner dynamics' shape."""

from __future__ import annotations

import math

import pytest
import torch

import noisescape as ns
from dynamics_cases import BATCH, GAUSSIAN
from noisescape.risk import layer_sizes

TRACES = torch.tensor([2.0, 0.5, 0.0, 3.0, 0.25, 0.1, 1.0])
DRAWN = {
    "sgd": ns.SGD(BATCH),
    "full": ns.GLDFull(BATCH),
    "full, without replacement": ns.GLDFull(BATCH, replacement=False),
    "shuffled": ns.GLDShuffled(BATCH, shuffle_seed=2),
    "shuffled within layers": ns.GLDShuffledWithinLayers(BATCH, shuffle_seed=2),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_every_step_draws_the_inner_noise_at_the_trace_of_that_step(name, network):
    inner = GAUSSIAN[name]
    yoked = ns.Yoked(inner, TRACES)
    generators = [torch.Generator().manual_seed(8) for _ in range(2)]
    theta = network.parameters()
    drift = 0.01 * torch.randn(network.dimension, generator=torch.Generator().manual_seed(1))
    states = [inner.init(network), yoked.init(network)]
    for step, trace in enumerate(TRACES):
        point = theta + step * drift
        gradient = network.gradient(point)
        own, states[0] = inner.noisy_gradient(network, point, states[0], generators[0])
        found, states[1] = yoked.noisy_gradient(network, point, states[1], generators[1])
        factor = (trace / states[0].covariance.trace()).sqrt()
        torch.testing.assert_close(found - gradient, factor * (own - gradient), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", DRAWN)
def test_noise_that_is_drawn_without_a_root_is_scaled_by_its_exact_trace(name, network):
    inner = DRAWN[name]
    yoked = ns.Yoked(inner, TRACES)
    generators = [torch.Generator().manual_seed(8) for _ in range(2)]
    theta = network.parameters()
    states = [inner.init(network), yoked.init(network)]
    gradient = network.gradient(theta)
    size = network.noise_covariance(theta, BATCH, replacement=inner.replacement).trace()
    for trace in TRACES:
        own, states[0] = inner.noisy_gradient(network, theta, states[0], generators[0])
        found, states[1] = yoked.noisy_gradient(network, theta, states[1], generators[1])
        torch.testing.assert_close(found - gradient, (trace / size).sqrt() * (own - gradient), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("inner", [ns.GLDDynamic(BATCH), ns.GLDFull(BATCH)], ids=repr)
def test_the_trace_really_injected_is_the_one_given_at_every_step(inner, regression, theta):
    """‖ε‖² over many replicas, of which each has its own θ."""
    traces, replicas = torch.tensor([4.0, 1.0, 0.0, 2.0], dtype=torch.float64), 20_000
    thetas = theta + torch.randn(replicas, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dynamics = ns.Yoked(inner, traces)
    state, generator = dynamics.init(regression), torch.Generator().manual_seed(1)
    gradient = regression.gradient(thetas)
    for trace in traces:
        noisy, state = dynamics.noisy_gradient(regression, thetas, state, generator)
        squares = (noisy - gradient).square().sum(1)
        assert abs(squares.mean() - trace) <= 4 * squares.std() / math.sqrt(replicas) + 1e-12


def test_there_is_no_noise_where_the_inner_dynamics_has_none():
    risk = ns.EmpiricalRisk.from_losses(lambda w: (w**2).sum(0, keepdim=True).expand(4), torch.ones(2))
    for inner in (ns.GLDFull(2), ns.GLDDiagonal(2), ns.GLDLeading(2, k=1)):
        run = ns.simulate(risk, ns.Yoked(inner, torch.ones(3)), torch.ones(2), lr=0.25, steps=3, progress=False)
        torch.testing.assert_close(run.theta, torch.full((2,), 0.125))


def test_a_shuffle_within_layers_keeps_the_trace_of_each_layer_and_the_spectrum(network):
    theta = network.parameters()
    sigma = network.noise_covariance(theta, BATCH).dense()
    found = ns.GLDShuffledWithinLayers(BATCH, shuffle_seed=1).covariance(network, theta).dense()
    assert len(layer_sizes(network)) > 1
    for before, after in zip(
        sigma.diagonal().split(layer_sizes(network)), found.diagonal().split(layer_sizes(network)), strict=True
    ):
        torch.testing.assert_close(before.sort().values, after.sort().values)
    assert not torch.allclose(sigma.diagonal(), found.diagonal())
    torch.testing.assert_close(torch.linalg.eigvalsh(sigma), torch.linalg.eigvalsh(found))


def test_more_steps_than_traces_are_refused_before_any_work(network, tmp_path):
    dynamics = ns.Yoked(ns.GLDDynamic(BATCH), torch.ones(3))
    with pytest.raises(ValueError, match="gld-dynamic has noise for 3 steps, not for 4"):
        ns.simulate(
            network, dynamics, network.parameters(), lr=0.1, steps=4, checkpoint=tmp_path / "a", progress=False
        )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_knows_other_traces_from_its_own(network, tmp_path):
    class Stop(Exception):
        pass

    def stop(step):
        if step == 2:
            raise Stop

    def run(traces, **options):
        return ns.simulate(
            network,
            ns.Yoked(ns.GLDDynamic(BATCH), traces),
            network.parameters(),
            lr=0.1,
            steps=3,
            checkpoint=tmp_path / "kept",
            checkpoint_seconds=0,
            progress=False,
            **options,
        )

    traces = torch.ones(2000)
    with pytest.raises(Stop):
        run(traces, on_step=stop)
    other = traces.clone()
    other[1500] = 2.0
    with pytest.raises(ValueError, match=r"of another run .*dynamics"):
        run(other)
    run(traces)


@pytest.mark.parametrize("inner", [ns.GD(), ns.GDGradientPenalty(0.1)], ids=repr)
def test_dynamics_without_noise_cannot_be_yoked(inner):
    with pytest.raises(TypeError, match="has no noise of its own to rescale"):
        ns.Yoked(inner, torch.ones(3))
    with pytest.raises(TypeError, match="inner must be a dynamics"):
        ns.Yoked("sgd", torch.ones(3))


@pytest.mark.parametrize(
    "traces", [torch.ones(2, 2), torch.ones(0), torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), [1.0]]
)
def test_traces_that_are_none_are_refused(traces):
    with pytest.raises(ValueError, match="traces must be a vector"):
        ns.Yoked(ns.SGD(BATCH), traces)


def test_yoked_dynamics_are_equal_if_their_shape_and_traces_are() -> None:
    one = ns.Yoked(ns.GLDDynamic(10), torch.ones(5))
    assert one == ns.Yoked(ns.GLDDynamic(10), torch.ones(5))
    others = [ns.Yoked(ns.SGD(10), torch.ones(5)), ns.Yoked(ns.GLDDynamic(10), torch.tensor([1.0, 1, 1, 1, 2]))]
    assert all(one != other for other in others)
    assert len({one, *others}) == 3
