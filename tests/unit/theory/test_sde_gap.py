"""SVAG at several ℓ against the closed form of a quadratic, where every ℓ is known exactly."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from noisescape.theory import expected_excess_loss, sde_gap
from noisescape.theory.landscapes import quadratic

F64 = torch.float64
HESSIAN = torch.diag(torch.tensor([3.0, 0.5], dtype=F64))
GRADIENTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.5, -2.0], [2.0, -1.0]], dtype=F64)


def test_losses_are_those_of_the_discrete_formula_at_every_ell():
    risk, start = quadratic(HESSIAN, GRADIENTS), torch.zeros(2, dtype=F64)
    found = sde_gap(risk, start, batch_size=2, lr=0.4, steps=10, ells=(1, 3), runs=4000, points=5, seed=1)
    assert found.times.tolist() == pytest.approx([0.8, 1.6, 2.4, 3.2, 4.0])
    covariance = risk.noise_covariance(start, 2).dense()
    for ell, losses in found.losses.items():
        assert losses.shape == (4000, 5)
        for place, steps in enumerate((2, 4, 6, 8, 10)):
            wanted = expected_excess_loss(HESSIAN, ell * covariance, lr=0.4 / ell, steps=ell * steps)
            column = losses[:, place]
            assert abs(float(column.mean() - wanted)) <= 4 * float(column.std()) / 4000**0.5


@pytest.mark.slow
@pytest.mark.parametrize("unit", [(1.0, 0.0), (3.0, -2.0), (1.0, 10.0)], ids=["as it is", "shifted down", "up"])
def test_the_gap_is_that_of_the_closed_form_within_its_error_whatever_the_zero_of_the_loss(unit):
    scale, shift = unit
    curvature = HESSIAN * scale

    def loss(theta, gradient):
        return 0.5 * ((theta @ curvature) * theta).sum(-1) + scale * (theta * gradient).sum(-1) + shift

    risk = ns.EmpiricalRisk.from_sample_loss(loss, GRADIENTS - GRADIENTS.mean(0), torch.zeros(2, dtype=F64))
    start = torch.zeros(2, dtype=F64)
    covariance = risk.noise_covariance(start, 2).dense()
    lr = 0.4 / scale

    def late(ell):
        noise = ell * covariance
        later = [expected_excess_loss(curvature, noise, lr=lr / ell, steps=ell * step) for step in (12, 15, 18)]
        return float(torch.stack(later).mean())  # the second half of six times

    gaps = [
        sde_gap(risk, start, batch_size=2, lr=lr, steps=18, ells=(1, 4), runs=200, points=6, seed=seed).gap(1)
        for seed in range(0, 300, 10)
    ]
    wanted = late(1) / late(4) - 1
    covered = sum(low <= wanted <= high for low, high in (gap.interval() for gap in gaps))
    assert covered >= 25
    mean = sum(gap.value for gap in gaps) / len(gaps)
    assert abs(mean - wanted) < 4 * sum(gap.stderr for gap in gaps) / len(gaps) ** 1.5
    assert abs(wanted) > 0.1


def test_the_largest_ell_has_no_gap_to_itself():
    risk = quadratic(HESSIAN, GRADIENTS)
    found = sde_gap(risk, torch.ones(2, dtype=F64), batch_size=1, lr=0.1, steps=4, ells=(1, 2), runs=2)
    assert (found.gap(2).value, found.gap(2).stderr) == (0.0, 0.0)


def test_one_ell_is_draw_for_draw_sgd():
    risk, start = quadratic(HESSIAN, GRADIENTS), torch.ones(2, dtype=F64)
    options = {"lr": 0.1, "steps": 5, "seed": 3, "progress": False}
    one, other = (ns.simulate(risk, dynamics, start, **options) for dynamics in (ns.SVAG(2), ns.SGD(2)))
    assert torch.equal(one.theta, other.theta)


REFUSED = [({"runs": 1}, "at least 2 runs"), ({"ells": (1, 1)}, "2 different")]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_asked(options, message):
    risk = quadratic(HESSIAN, GRADIENTS)
    with pytest.raises(ValueError, match=message):
        sde_gap(risk, torch.ones(2, dtype=F64), batch_size=1, lr=0.1, steps=4, **options)
    with pytest.raises(ValueError, match="ell must be at least 1"):
        ns.SVAG(1, ell=0).check(risk)
