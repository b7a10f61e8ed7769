"""The power law from curvature to noise, on problems whose exponent is known, and μ in closed form."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from noisescape.theory.alignment import alignment_factor, alignment_law, power_law

F64 = torch.float64


def sparse_regression(exponent, features=60, seed=0):
    """One feature a sample, of scale s_i: H_ii ∝ s_i², and residuals ∝ s_i^(γ−1) make C_ii ∝ s_i^{2γ} ∝ H_ii^γ."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 1, features, dtype=F64)
    which = torch.arange(features).repeat(40)
    inputs = torch.zeros(len(which), features, dtype=F64)
    inputs[torch.arange(len(which)), which] = scales[which]
    signs = torch.randint(2, (len(which),), generator=generator) * 2.0 - 1
    targets = (signs * scales[which] ** (exponent - 1)).to(F64)
    model = torch.nn.Linear(features, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    return ns.EmpiricalRisk(model, torch.nn.MSELoss(), (inputs, targets[:, None]))


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_exponents_that_are_known(exponent):
    risk = sparse_regression(exponent)
    law = alignment_law(risk, risk.parameters())["weight"]
    assert law.exponent.value == pytest.approx(exponent, abs=0.02)
    assert abs(law.exponent.value - exponent) <= 4 * law.exponent.stderr
    assert law.null_low < 0 < law.null_high < 1 < law.exponent.value + 0.05
    assert law.correlation > 0.99
    assert (law.points, law.dropped) == (60, 0)


def test_interval_covers_the_exponent():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        curvature = torch.randn(60, generator=generator, dtype=F64).mul(2).exp()
        noise = curvature**1.4 * torch.randn(60, generator=generator, dtype=F64).exp()
        low, high = power_law(noise, curvature).exponent.interval()
        covered += low <= 1.4 <= high
    assert 0.91 <= covered / 300 <= 0.98  # the bootstrap of 60 points is a little short


def test_pairs_at_random_have_the_null_s_exponent():
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for seed in range(100):
        curvature, noise = torch.randn(2, 80, generator=generator, dtype=F64).exp()
        law = power_law(noise, curvature, seed=seed)
        inside += law.null_low <= law.exponent.value <= law.null_high
    assert 88 <= inside <= 100


def test_parameter_tensors_of_a_network_each_have_their_law():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3)).double()
    risk = ns.EmpiricalRisk(
        model, torch.nn.CrossEntropyLoss(), (torch.randn(40, 5, dtype=F64), torch.arange(40) % 3)
    )
    theta = risk.parameters()
    found = alignment_law(risk, theta, per_layer=20)
    assert set(found) <= {"0.weight", "0.bias", "2.weight"}  # 2.bias has three numbers
    assert "2.weight" in found
    whole = alignment_law(risk, theta, per_layer=60)["2.weight"]

    def loss(point):
        return risk._function.losses(point, risk._samples.between(0, 40)).mean()

    hessian = torch.autograd.functional.hessian(loss, theta).diagonal()[72:108]
    gradients = risk.per_sample_gradients(theta)[:, 72:108]
    usable = hessian > 0
    x, y = hessian[usable].log(), gradients.var(0, unbiased=False)[usable].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert whole.exponent.value == pytest.approx(float(slope), rel=1e-9)
    assert whole.points == int(usable.sum())
    assert whole.points + whole.dropped == 36


def test_too_few_coordinates():
    risk = ns.EmpiricalRisk(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (torch.randn(9, 2), torch.randn(9, 1)))
    with pytest.raises(ValueError, match="no parameter tensor has 8 coordinates"):
        alignment_law(risk, risk.parameters())
    with pytest.raises(ValueError, match="per_layer = 3"):
        alignment_law(risk, risk.parameters(), per_layer=3)


def regression(scale=1.0, outputs=1):
    torch.manual_seed(1)
    model = torch.nn.Linear(4, outputs).double()
    data = torch.randn(30, 4, dtype=F64), torch.randn(30, outputs, dtype=F64)
    return ns.EmpiricalRisk(model, lambda found, wanted: scale * (found - wanted).square().sum(1), data)


def test_factor_in_closed_form():
    risk = regression()
    theta = risk.parameters()
    gradients = risk.per_sample_gradients(theta)
    covariance = (gradients - gradients.mean(0)).mT @ (gradients - gradients.mean(0)) / 30
    curvature = risk.gauss_newton(theta).dense()
    wanted = (covariance * curvature).sum() / (2 * risk.loss(theta) * curvature.square().sum())
    found = alignment_factor(risk, theta, rtol=1e-3)
    assert abs(found.value - float(wanted)) <= 4 * found.stderr + 1e-9


def test_factor_does_not_depend_on_the_unit_of_the_loss():
    one, other = (alignment_factor(risk, risk.parameters()) for risk in (regression(), regression(scale=7.0)))
    assert one.value == pytest.approx(other.value, rel=1e-9)


def test_factor_of_independent_residuals_is_the_moments():
    """f = wx, residual r independent of x: C = E r²·E x² x² … with μ = E(rx)²·E x²/(E r²·(E x²)²), here near 1."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200_000, 1, generator=generator, dtype=F64)
    targets = torch.randn(200_000, 1, generator=generator, dtype=F64)
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    risk = ns.EmpiricalRisk(model, torch.nn.MSELoss(), (inputs, targets))
    # ℓ = (wx − y)²: C = 4E x²y² = 4, G = 2E x² = 2, L = 1, so that μ = 4·2/(2·1·4) = 1
    assert alignment_factor(risk, risk.parameters()).value == pytest.approx(1, abs=0.02)


def test_a_loss_of_nothing_has_no_factor():
    model = torch.nn.Linear(2, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    data = torch.randn(9, 2, dtype=F64), torch.zeros(9, 1, dtype=F64)
    risk = ns.EmpiricalRisk(model, torch.nn.MSELoss(), data)
    with pytest.raises(ValueError, match="the loss is 0"):
        alignment_factor(risk, risk.parameters())
