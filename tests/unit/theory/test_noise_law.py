"""Tails of minibatch noise against laws that are known, and noise of epochs against all orders of the samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import levy_stable

import noisescape as ns
from noisescape.theory.landscapes import quadratic
from noisescape.theory.noise_law import epoch_variance, stable_index, tail_test

F64 = torch.float64


def with_gradients(rows):
    """A quadratic whose per-sample gradients at 0 are the rows, less their mean."""
    return quadratic(torch.eye(rows.shape[1], dtype=F64), rows)


def drawn(shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_index_of_stable_laws(alpha):
    samples = torch.from_numpy(levy_stable.rvs(alpha, 0, size=(200, 2500), random_state=np.random.default_rng(0)))
    parts = torch.tensor([stable_index(some) for some in samples.split(20)])
    assert abs(stable_index(samples) - alpha) <= 3 * float(parts.std()) / 10**0.5 + 0.01 * alpha


def test_rows_are_averaged_before_the_inverse():
    """Single rows of a Gaussian may say anything; their growth averages out."""
    rows = drawn((400, 64))
    alone = torch.tensor([stable_index(row) for row in rows])
    assert float(alone.std()) > 1
    assert stable_index(rows) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("numbers", [torch.tensor([0.0, 1.0]).repeat(50), torch.tensor([1.0, -1.0]).repeat(50)])
def test_a_law_with_weight_at_nothing_has_no_index(numbers):
    with pytest.raises(ValueError, match="exactly 0, which has no logarithm"):
        stable_index(numbers)


def test_a_large_batch_is_not_told_from_its_gaussian():
    risk = with_gradients(drawn((300, 200)))
    found = tail_test(risk, torch.zeros(200, dtype=F64), batch_size=100, draws=400, coordinates=200)
    for result in (found.kurtosis_over_iterations, found.index_over_iterations, found.kurtosis_over_coordinates):
        assert result.p >= 0.04, result


def test_single_samples_of_a_rare_large_gradient_are_heavy_over_iterations():
    rows = 0.1 * drawn((300, 80))
    rows[:3] += 10 * drawn((3, 80), seed=1)
    found = tail_test(
        with_gradients(rows), torch.zeros(80, dtype=F64), batch_size=2, draws=1000, coordinates=128, nulls=39
    )
    assert found.kurtosis_over_iterations.p == 2 / 40
    assert found.kurtosis_over_iterations.value > 10 * found.kurtosis_over_iterations.high
    assert found.index_over_iterations.value < found.index_over_iterations.low


def test_coordinates_of_unlike_variance_are_heavy_and_so_is_their_null():
    scales = torch.logspace(-2, 2, 200, dtype=F64)
    risk = with_gradients(scales * drawn((400, 200)))
    found = tail_test(risk, torch.zeros(200, dtype=F64), batch_size=100, draws=300, coordinates=200, nulls=39)
    assert found.kurtosis_over_coordinates.value > 5
    assert found.index_over_coordinates.value < 1.5
    assert found.kurtosis_over_coordinates.p > 0.05
    assert found.index_over_coordinates.p > 0.05
    assert abs(found.kurtosis_over_iterations.value) < 0.5


@pytest.mark.slow
def test_kurtosis_is_that_of_the_batches_exactly():
    """Of a mean of B draws from N equal to the population's excess kurtosis over B."""
    rows = drawn((50, 70)) ** 3
    centred = rows - rows.mean(0)
    excess = (centred**4).mean(0) / (centred**2).mean(0) ** 2 - 3
    found = tail_test(
        with_gradients(rows), torch.zeros(70, dtype=F64), batch_size=5, draws=20_000, coordinates=128, nulls=19
    )
    assert found.kurtosis_over_iterations.value == pytest.approx(float(excess.mean()) / 5, rel=0.05)


def test_null_is_what_gaussian_noise_of_the_same_covariance_has():
    """Draws of GLDFull, made by another path, have the null's kurtosis over coordinates."""
    scales = torch.logspace(-1, 1, 150, dtype=F64)
    risk, theta = with_gradients(scales * drawn((60, 150)) ** 3), torch.zeros(150, dtype=F64)
    found = tail_test(risk, theta, batch_size=7, draws=400, coordinates=150, nulls=49)
    draws = ns.GLDFull(7).covariance(risk, theta).sample(4000, torch.Generator().manual_seed(1))
    centred = draws - draws.mean(1, keepdim=True)
    kurtosis = (centred**4).mean(1) / (centred**2).mean(1) ** 2 - 3
    assert found.kurtosis_over_coordinates.null == pytest.approx(float(kurtosis.mean()), rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 10}, "draws = 10, but at least 256"),
        ({"coordinates": 10}, "coordinates = 10"),
        ({"nulls": 5}, "nulls = 5"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 31, "replacement": False}, "batch_size = 31 exceeds"),
    ],
)
def test_what_cannot_be_asked_of_tails(options, message):
    risk = with_gradients(drawn((30, 130)))
    with pytest.raises(ValueError, match=message):
        tail_test(risk, torch.zeros(130, dtype=F64), **{"batch_size": 3, **options})


def test_coordinates_without_noise_are_passed_over():
    rows = drawn((30, 100))
    rows[:, 50:] = 1.0
    with pytest.raises(ValueError, match="only 50 of the coordinates looked at have noise"):
        tail_test(with_gradients(rows), torch.zeros(100, dtype=F64), batch_size=3)


def test_too_few_numbers_for_an_index():
    with pytest.raises(ValueError, match="rows of at least 64 numbers, not 9"):
        stable_index(torch.ones(9))


# ------------------------------------------------------------------ epochs


def orders_noise(gradients, batch):
    """ε of each batch of an epoch, for all orders of the samples, (orders, M)."""
    rows = torch.tensor([*itertools.permutations(range(len(gradients)))])
    return (gradients - gradients.mean())[rows].unflatten(1, (-1, batch)).mean(-1)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_noise_of_an_epoch_leans_against_itself(batch):
    gradients = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.0, -1.0], dtype=F64)
    noise = orders_noise(gradients, batch)
    number = noise.shape[1]
    covariance = noise.mT @ noise / len(noise)
    factor = (6 - batch) / (batch * 5)
    variance = factor * gradients.var(unbiased=False)
    wanted = torch.full((number, number), float(-variance / (number - 1)), dtype=F64).fill_diagonal_(variance)
    torch.testing.assert_close(covariance, wanted, rtol=1e-12, atol=1e-12)
    assert float(noise.sum(1).abs().max()) < 1e-12


@pytest.mark.parametrize("step", [1e-3, 0.1, 0.9, 1.7])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_variance_kept_over_epochs_by_all_orders(batch, step):
    gradients = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.0, -1.0], dtype=F64)
    noise, decay = orders_noise(gradients, batch), 1 - step
    number = noise.shape[1]
    weights = decay ** torch.arange(number - 1, -1, -1, dtype=F64)
    moved = (noise * weights).sum(1)  # over one epoch, in units of −η
    kept = moved.square().mean() / (1 - decay ** (2 * number))
    independent = noise[:, 0].square().mean() / (1 - decay**2)
    assert epoch_variance(0.1, step / 0.1, number) == pytest.approx(float(kept / independent), rel=1e-10)


def test_simulated_epochs_keep_what_the_formula_says():
    curvatures = torch.tensor([0.02, 0.5, 3.0], dtype=F64)
    gradients, lr, batch = drawn((12, 3)), 0.2, 3
    risk, start = quadratic(torch.diag(curvatures), gradients), torch.zeros(3, dtype=F64)
    dynamics = ns.SGD(batch, sampling="epoch")
    run = ns.simulate(risk, dynamics, start, lr=lr, steps=400, replicas=4000, record={}, progress=False)
    covariance = dynamics.covariance(risk, start).dense().diagonal()
    decay = 1 - lr * curvatures
    for axis in range(3):
        independent = lr**2 * covariance[axis] / (1 - decay[axis] ** 2)
        wanted = independent * epoch_variance(lr, float(curvatures[axis]), 4)
        squares = run.theta[:, axis].square()
        # 100 epochs from 0: the flattest direction has kept 1 − a^800 of it
        wanted = wanted * (1 - decay[axis] ** 800)
        assert abs(float(squares.mean() - wanted)) <= 4 * float(squares.std()) / len(squares) ** 0.5


def test_each_epoch_has_every_sample_once_and_drops_the_rest():
    risk = quadratic(torch.eye(11, dtype=F64), torch.eye(11, dtype=F64))
    dynamics, generator = ns.SGD(3, sampling="epoch"), torch.Generator().manual_seed(0)
    start, seen = torch.zeros(11, dtype=F64), []
    state = dynamics.init(risk)
    for _ in range(6):
        found, state = dynamics.noisy_gradient(risk, start, state, generator)
        seen.append((found + 1 / 11 > 0.1).double())
    for epoch in (seen[:3], seen[3:]):
        assert torch.stack(epoch).sum(1).tolist() == [3, 3, 3]
        assert sorted(torch.stack(epoch).sum(0).tolist()) == [0, 0, *[1] * 9]
    assert not torch.equal(seen[0], seen[3])


def test_epochs_draw_without_replacement_and_in_no_single_draws():
    dynamics = ns.SGD(3, sampling="epoch")
    assert not dynamics.replacement
    risk = quadratic(torch.eye(2, dtype=F64), drawn((5, 2)))
    with pytest.raises(TypeError, match="noise of an epoch's batches hangs together over steps"):
        dynamics.draw(risk, torch.zeros(2, dtype=F64), torch.Generator())
    with pytest.raises(ValueError, match="sampling is 'independent' or 'epoch', not 'epochs'"):
        ns.SGD(3, sampling="epochs")
    with pytest.raises(ValueError, match="batch_size = 6 exceeds"):
        ns.SGD(6, sampling="epoch").check(risk)


@pytest.mark.parametrize(("lr", "curvature", "batches"), [(0.1, 0.0, 5), (0.1, 20.0, 5), (0.1, 1.0, 1)])
def test_no_stationary_variance(lr, curvature, batches):
    with pytest.raises(ValueError, match="the variance is stationary for"):
        epoch_variance(lr, curvature, batches)
