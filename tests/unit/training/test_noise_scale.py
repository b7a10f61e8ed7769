"""Estimates of a step and their smoothing: unbiased by enumeration, intervals that cover."""

import itertools
import math

import numpy as np
import pytest
import torch

from noisescape.training.noise_scale import Weights, moments, smooth
from slowness import quick
from training_loops import textbook


def drawn(population, sizes, weights):
    """All ways to draw the pieces with replacement, and (Tr Ĉ, ‖ĝ‖²) of each."""
    count = len(population)
    of_size = {
        size: [np.mean(pick, 0) for pick in itertools.product(population, repeat=size)] for size in set(sizes)
    }
    known = Weights.of(sizes, weights)
    assert count ** sum(sizes) <= 10_000
    for pieces in itertools.product(*(of_size[size] for size in sizes)):
        parts = np.array([weight * piece for weight, piece in zip(weights, pieces, strict=True)])
        yield moments(np.sum(parts**2), np.sum(parts.sum(0) ** 2), known)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ((1, 1), (0.5, 0.5)),
        ((2, 2), (0.5, 0.5)),
        ((1, 1, 1, 1), (0.25,) * 4),
        ((2, 2), (1.0, 1.0)),
        ((1, 3), (0.5, 0.5)),
        ((1, 3), (0.25, 0.75)),
        ((1, 2, 1), (0.2, 0.7, 0.3)),
    ],
)
def test_unbiased_over_every_draw(sizes, weights):
    population = np.random.default_rng(0).normal(size=(4, 3)) + 0.5
    mean = population.mean(0)
    traces, squares = np.array(list(drawn(population, sizes, weights))).T
    np.testing.assert_allclose(traces.mean(), np.mean(np.sum((population - mean) ** 2, 1)), rtol=1e-12)
    np.testing.assert_allclose(squares.mean(), np.sum(mean**2), rtol=1e-12)


def test_equal_pieces_are_the_textbook_form():
    gradients = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = Weights.of([3] * 5, [0.2] * 5)
    parts = gradients / 5
    found = moments(float(parts.square().sum()), float(parts.sum(0).square().sum()), known)
    np.testing.assert_allclose(found, textbook(gradients, 3), rtol=1e-12)


def test_weights_add_up_over_ranks():
    whole = Weights.of([3, 4, 5], [0.2, 0.3, 0.5])
    parts = [Weights.of([3], [0.2]), Weights.of([4, 5], [0.3, 0.5])]
    for name in ("samples", "pieces", "total", "squared", "squared_over_size"):
        assert sum(getattr(part, name) for part in parts) == pytest.approx(getattr(whole, name))


def test_one_piece_tells_nothing():
    assert not Weights.of([8], [1.0]).informative
    assert Weights.of([8, 8], [0.5, 0.5]).informative


def simulated(scale, pieces, steps, rng, *, dimension=50, drift=0.0):
    """Estimates of ``steps`` steps with Tr C = scale, ‖ḡ‖² = 1 (in the mean over steps), b = 4."""
    size = 4
    levels = np.exp(drift * np.linspace(-1, 1, steps))
    signal = levels / np.sqrt(np.mean(levels**2))
    gradients = np.zeros((steps, pieces, dimension))
    gradients[..., 0] = signal[:, None]
    gradients = gradients + rng.normal(size=gradients.shape) * math.sqrt(scale / dimension / size)
    weights = [1 / pieces] * pieces
    parts = gradients / pieces
    return moments((parts**2).sum((1, 2)), (parts.sum(1) ** 2).sum(1), Weights.of([size] * pieces, weights))


@pytest.mark.parametrize("pieces", [2, 8, 64])
def test_a_ratio_of_means_is_right_where_a_mean_of_ratios_is_not(pieces):
    traces, squares = simulated(100, pieces, 2000, np.random.default_rng(0))
    found = smooth(traces, squares)
    assert abs(found.scale - 100) < 4 * found.scale_stderr
    assert found.scale_stderr < 30
    assert abs(found.trace - 100) < 4 * found.trace_stderr
    ratios = traces / squares
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 100) > 5 * error or error > 10, "far off, or without a mean to speak of"
    if pieces < 64:
        assert (squares < 0).any(), "negative estimates are kept, or the mean would be too large"


@pytest.mark.parametrize(
    ("pieces", "drift", "steps"),
    quick([(2, 0.5, 20), (8, 0.0, 20), (2, 0.0, 100)], itertools.product([2, 8], [0.0, 0.5], [20, 100])),
)
def test_the_interval_covers(steps, drift, pieces):
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(1000):
        found = smooth(*simulated(30, pieces, steps, rng, drift=drift))
        covered.append(found.scale_low <= 30 <= found.scale_high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_signal_that_cannot_be_told_from_zero_has_no_upper_end():
    rng = np.random.default_rng(0)
    found = smooth(100 + rng.normal(size=30), rng.normal(size=30) * 5)
    assert found.scale_high == math.inf
    assert 0 < found.scale_low < math.inf


def test_the_ends_are_never_nan_and_hold_what_is_between():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 10):
        for _ in range(200):
            found = smooth(rng.normal(size=count) + 1, rng.normal(size=count) + 0.5)
            assert 0 <= found.scale_low <= found.scale_high
            if 0 <= found.scale < math.inf:
                assert found.scale_low <= found.scale <= found.scale_high


def test_one_step_has_no_error_yet():
    found = smooth([3.0], [2.0])
    assert (found.scale, found.scale_stderr, found.scale_low, found.scale_high) == (1.5, math.inf, 0.0, math.inf)


def test_constant_estimates_are_certain():
    found = smooth([4.0] * 5, [2.0] * 5)
    assert found.scale == found.scale_low == found.scale_high == 2
    assert found.scale_stderr == 0
