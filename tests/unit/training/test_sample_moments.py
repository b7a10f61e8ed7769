"""Tr C, ‖ḡ‖² and their ratio: unbiased by enumeration, errors those of the jackknife, intervals that cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import F64, generator, normal
from noisescape.errors import InvalidValueError
from noisescape.training.noise_scale import fieller
from noisescape.training.sample_moments import SampleMoments, sample_moments


def of_gradients(gradients: Tensor) -> SampleMoments:
    mean = gradients.mean(0)
    return sample_moments(gradients.square().sum(1), gradients @ mean, mean @ mean)


def test_over_all_samples_of_three_out_of_five_the_means_are_those_of_the_population():
    population = normal(5, 4, seed=1) + 0.5
    mean = population.mean(0)
    trace = float((population - mean).square().sum() / 5)
    every = [of_gradients(population[list(chosen)]) for chosen in itertools.product(range(5), repeat=3)]
    assert np.mean([each.trace_covariance for each in every]) == pytest.approx(trace, rel=1e-12)
    assert np.mean([each.squared_gradient_norm for each in every]) == pytest.approx(float(mean @ mean), rel=1e-12)


def test_errors_are_those_of_leaving_one_out():
    gradients = normal(9, 4, seed=2)
    found = of_gradients(gradients)
    others = [of_gradients(torch.cat([gradients[:i], gradients[i + 1 :]])) for i in range(9)]
    for name in ("trace_covariance", "squared_gradient_norm"):
        values = np.array([getattr(each, name) for each in others])
        expected = math.sqrt(8 / 9 * np.square(values - values.mean()).sum())
        assert getattr(found, f"{name}_stderr") == pytest.approx(expected, rel=1e-9)


def test_intervals_of_the_scale_cover_and_errors_are_true():
    """Gaussian gradients of scale 20, samples of 64, 1,000 times."""
    deviations = torch.linspace(0.2, 2.0, 12, dtype=F64)
    mean = torch.full((12,), float((deviations.square().sum() / 20 / 12).sqrt()), dtype=F64)
    draw = generator(3)
    found = [of_gradients(mean + deviations * torch.randn(64, 12, generator=draw, dtype=F64)) for _ in range(1000)]
    covered = sum(each.scale_low <= 20 <= each.scale_high for each in found)
    assert 930 <= covered <= 975
    for name, truth in (("trace_covariance", deviations.square().sum()), ("squared_gradient_norm", mean @ mean)):
        off = np.array([getattr(each, name) - float(truth) for each in found])
        errors = np.array([getattr(each, f"{name}_stderr") for each in found])
        assert abs(off.mean()) < 4 * off.std() / math.sqrt(1000)
        assert np.sqrt(np.square(errors).mean()) == pytest.approx(off.std(), rel=0.1)


def test_the_scale_is_infinite_where_the_gradient_may_be_zero():
    gradients = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    found = of_gradients(gradients)
    assert found.squared_gradient_norm < 0
    assert (found.scale, found.scale_high) == (math.inf, math.inf)
    assert 0 <= found.scale_low < math.inf


@pytest.mark.parametrize(
    ("numerator", "denominator", "covariance"),
    [
        (10.0, 2.0, [[0.1, 0.02], [0.02, 0.1]]),
        (10.0, 0.3, [[0.1, 0.02], [0.02, 0.1]]),
        (0.1, 0.3, [[0.1, -0.02], [-0.02, 0.1]]),
        (10.0, -0.2, [[0.1, 0.02], [0.02, 0.1]]),
        (3.0, 2.0, [[0.1, 0.0], [0.0, 0.0]]),
    ],
)
def test_fiellers_interval_holds_the_ratios_that_cannot_be_told_apart(numerator, denominator, covariance):
    low, high = fieller(numerator, denominator, 1.959964**2 * np.array(covariance))
    ratios = np.linspace(0, 400, 400_001)
    off = numerator - ratios * denominator
    variance = covariance[0][0] - 2 * ratios * covariance[0][1] + ratios**2 * covariance[1][1]
    within = ratios[off**2 <= 1.959964**2 * variance]
    assert low == pytest.approx(within.min(), abs=2e-3)
    assert min(high, 400) == pytest.approx(within.max(), abs=2e-3)


def test_two_gradients_are_too_few():
    with pytest.raises(InvalidValueError, match="at least 3"):
        of_gradients(normal(2, 3))
