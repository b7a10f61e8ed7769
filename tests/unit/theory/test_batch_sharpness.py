"""Batch sharpness against all batches of a small data set."""

from __future__ import annotations

import itertools

import pytest
import torch

import noisescape as ns
from noisescape.theory import batch_sharpness, batch_sharpness_limits

F64 = torch.float64


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    return ns.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (torch.randn(5, 3, dtype=F64), torch.arange(5) % 2))


def enumerated(risk, batches):
    theta = risk.parameters()
    found = []
    for batch in batches:
        picked = torch.tensor(batch)
        gradient = risk.minibatch_gradient(theta, picked)

        def loss(point, picked=picked):
            return risk._function.losses(point, risk._samples.between(0, 5))[picked].mean()

        hessian = torch.autograd.functional.hessian(loss, theta)
        found.append((gradient @ hessian @ gradient, gradient @ gradient))
    curved, squares = torch.tensor(found, dtype=F64).T
    return float((curved / squares).mean()), float(curved.mean() / squares.mean())


@pytest.mark.slow
@pytest.mark.parametrize("replacement", [True, False], ids=["with replacement", "without"])
def test_both_means_are_those_over_all_batches(replacement):
    risk = network()
    batches = itertools.product(range(5), repeat=2) if replacement else itertools.combinations(range(5), 2)
    of_ratios, of_means = enumerated(risk, batches)
    found = batch_sharpness(risk, risk.parameters(), batch_size=2, replacement=replacement, draws=1000, seed=3)
    for estimate, wanted in ((found.mean_of_ratios, of_ratios), (found.ratio_of_means, of_means)):
        assert abs(estimate.value - wanted) <= 4 * estimate.stderr
        assert 0 < estimate.stderr < 0.05 * abs(wanted)
        assert estimate.cost == 3000


@pytest.mark.slow
def test_intervals_cover():
    risk = network()
    of_ratios, of_means = enumerated(risk, itertools.product(range(5), repeat=2))
    covered = [0, 0]
    for seed in range(200):
        found = batch_sharpness(risk, risk.parameters(), batch_size=2, draws=40, seed=seed)
        for place, (estimate, wanted) in enumerate(
            ((found.mean_of_ratios, of_ratios), (found.ratio_of_means, of_means))
        ):
            low, high = estimate.interval()
            covered[place] += low <= wanted <= high
    assert all(180 <= count <= 198 for count in covered), covered


def test_all_samples_are_the_curvature_along_the_gradient():
    risk = network()
    theta = risk.parameters()
    gradient = risk.gradient(theta)
    wanted = float(gradient @ risk.hvp(theta, gradient) / gradient.square().sum())
    found = batch_sharpness(risk, theta, batch_size=5, replacement=False, draws=2)
    assert found.mean_of_ratios.value == pytest.approx(wanted, rel=1e-10)
    assert found.ratio_of_means.stderr < 1e-12


def test_limits():
    assert batch_sharpness_limits(0.1, 0.9) == (pytest.approx(2.0), pytest.approx(38.0))
    for lr, momentum in ((0.0, 0.0), (0.1, 1.0), (0.1, -0.1)):
        with pytest.raises(ValueError, match="lr must be positive and momentum"):
            batch_sharpness_limits(lr, momentum)


def test_what_cannot_be_asked():
    risk = network()
    with pytest.raises(ValueError, match="draws = 1"):
        batch_sharpness(risk, risk.parameters(), batch_size=2, draws=1)
    with pytest.raises(ValueError, match="exceeds the 5 samples"):
        batch_sharpness(risk, risk.parameters(), batch_size=6, replacement=False)
    model = torch.nn.Linear(2, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    fitted = ns.EmpiricalRisk(
        model, torch.nn.MSELoss(), (torch.randn(9, 2, dtype=F64), torch.zeros(9, 1, dtype=F64))
    )
    with pytest.raises(ValueError, match="the gradient of 100 of 100 batches is exactly 0"):
        batch_sharpness(fitted, fitted.parameters(), batch_size=2)
