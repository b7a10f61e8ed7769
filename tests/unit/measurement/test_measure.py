"""``measure`` against dense autograd, exact where it says so, else within its errors."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import noisescape as ns
from cases import CASES, F64, WIDER, bowl_gradients, bowl_hessian, bowl_risk, normal, symmetric
from dense_indicators import FIGURES, of_case, reference
from noisescape.linops import FunctionOperator
from noisescape.theory.landscapes import quadratic
from slowness import quick


@pytest.mark.parametrize(("batch_size", "replacement"), [(1, True), (3, True), (20, True), (3, False)])
@pytest.mark.parametrize(
    ("name", "k"), [("mlp cross-entropy", 8), ("mlp squared", 8), ("conv", 16), ("tied weights", 3)]
)
def test_small_networks_are_measured_exactly(name: str, k: int, batch_size: int, replacement: bool) -> None:
    case = CASES[name]
    found = ns.measure(case.risk(), case.theta, batch_size=batch_size, replacement=replacement, k=k)
    expected = of_case(case, batch_size, replacement=replacement, k=k)
    assert found.estimates().keys() == set(FIGURES) == expected.keys()
    for figure, estimate in found.estimates().items():
        assert estimate.value == pytest.approx(expected[figure], rel=1e-9), figure
        assert estimate.stderr <= 1e-9 * abs(estimate.value), figure
    assert (found.dimension, found.sample_count) == (len(case.theta), case.count)
    assert (found.batch_size, found.replacement, found.k) == (batch_size, replacement, k)


@pytest.mark.parametrize("name", ["mlp cross-entropy", "conv"])
def test_leading_eigenvalues_are_the_dense_ones(name: str) -> None:
    case = CASES[name]
    found = ns.measure(case.risk(), case.theta, batch_size=3, k=4)
    curvature = torch.linalg.eigvalsh(case.hessian()).flip(0)
    noise = torch.linalg.eigvalsh(case.covariance() / 3).flip(0)
    torch.testing.assert_close(found.hessian.values, curvature[:5], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.noise.values, noise[:4], rtol=1e-9, atol=1e-12)


def test_noise_of_low_rank_shows_the_eigenvalues_there_are() -> None:
    case = CASES["conv"]  # nine samples: rank 8
    found = ns.measure(case.risk(), case.theta, batch_size=3, k=20)
    noise = torch.linalg.eigvalsh(case.covariance() / 3).flip(0)
    assert len(found.noise.values) == 8
    torch.testing.assert_close(found.noise.values, noise[:8], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("seed", quick([0], range(1, 4)))
@pytest.mark.usefixtures("by_probes")
def test_a_larger_networks_figures_lie_within_their_errors(seed: int) -> None:
    """171 parameters, so that Lanczos and probes are at work; Student's quantile where there are few probes."""
    found = ns.measure(WIDER.risk(), WIDER.theta, batch_size=8, k=5, seed=seed, max_products=10_000)
    expected = of_case(WIDER, 8, k=5)
    for figure, estimate in found.estimates().items():
        error = abs(estimate.value - expected[figure])
        most = float(stats.t.isf(3e-5, estimate.dof)) * estimate.stderr
        assert error <= most + 1e-7 * abs(expected[figure]), figure
    estimated = {figure for figure, estimate in found.estimates().items() if estimate.relative_stderr > 1e-6}
    assert {"trace_h", "trace_h_sigma", "anisotropy", "alignment"} <= estimated
    assert found.trace_h.relative_stderr <= 0.01
    assert found.trace_h_sigma.relative_stderr <= 0.01


def _normal_score(score: float, dof: float) -> float:
    """What a normal variable would be where Student's is this: few probes make heavy tails."""
    return float(stats.norm.ppf(stats.t.cdf(score, dof)))


@pytest.mark.slow
@pytest.mark.usefixtures("by_probes")
def test_standard_errors_of_a_larger_network_are_honest() -> None:
    """Over 60 seeds the errors, in units of the claimed standard error, are Student's and without bias."""
    expected = of_case(WIDER, 8, k=5)
    risk = WIDER.risk()
    runs = [
        ns.measure(risk, WIDER.theta, batch_size=8, k=5, rtol=0.02, seed=seed, max_products=5000)
        for seed in range(60)
    ]
    for figure in ("trace_h", "trace_h_sigma", "isotropic_reference", "anisotropy", "upper_bound"):
        found = [run.estimates()[figure] for run in runs]
        scores = torch.tensor(
            [_normal_score((one.value - expected[figure]) / one.stderr, one.dof) for one in found]
        )
        assert abs(float(scores.mean())) < 4 / math.sqrt(60), figure
        assert 0.7 < float(scores.std()) < 1.35, figure


@pytest.mark.usefixtures("by_probes")
def test_a_hessian_of_another_making_is_used_in_every_figure() -> None:
    """Three times H: all that H enters in is that of three times H, with the same Gauss–Newton matrix at hand."""
    risk, theta = WIDER.risk(), WIDER.theta
    given = FunctionOperator(
        lambda block: 3 * (WIDER.hessian() @ block), risk.dimension, dtype=F64, device="cpu", name="3H"
    )
    found = ns.measure(risk, theta, batch_size=8, k=5, hessian=given)
    expected = reference(float(WIDER.losses(theta).mean()), WIDER.gradients(), 3 * WIDER.hessian(), 8, k=5)
    for figure, estimate in found.estimates().items():
        most = float(stats.t.isf(3e-5, estimate.dof)) * estimate.stderr
        assert abs(estimate.value - expected[figure]) <= most + 1e-7 * abs(expected[figure]), figure
    assert given.products > 0
    torch.testing.assert_close(found.hessian.values, 3 * torch.linalg.eigvalsh(WIDER.hessian()).flip(0)[:6])


def test_a_closed_form_is_measured_exactly() -> None:
    theta = torch.tensor([0.4, -0.3, 0.8], dtype=F64)
    risk = bowl_risk()
    expected = reference(float(risk.losses(theta).mean()), bowl_gradients(theta), bowl_hessian(theta), 2)
    for figure, estimate in ns.measure(risk, theta, batch_size=2).estimates().items():
        assert estimate.value == pytest.approx(expected[figure], rel=1e-9), figure


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_few_dimensions_are_enough(dimension: int) -> None:
    hessian = symmetric(dimension, torch.tensor([3.0, 1.0, 0.5])[:dimension], seed=3)
    linear = normal(6, dimension, seed=4)
    theta = normal(dimension, seed=5)
    found = ns.measure(quadratic(hessian, linear), theta, batch_size=2)
    gradients = theta @ hessian + linear - linear.mean(0)
    expected = reference(float(0.5 * theta @ hessian @ theta), gradients, hessian, 2)
    for figure, value in expected.items():
        assert found.estimates()[figure].value == pytest.approx(value, rel=1e-9), figure
    assert math.isnan(found.decay_exponent.value) == (dimension == 1)
    assert found.k == max(1, dimension - 1)
    assert len(found.hessian.values) == dimension
    assert "Tr(HΣ)" in str(found)


@pytest.mark.parametrize("lowest", [-0.02, 0.0, 0.3])
def test_a_smallest_eigenvalue_beside_large_ones_is_found(lowest: float) -> None:
    """A spectrum as networks have: a few large values, hundreds near 0, of which one may be negative."""
    spectrum = torch.cat([torch.logspace(1, 0, 12, dtype=F64), torch.linspace(0.5, 1e-3, 287, dtype=F64) + lowest])
    spectrum = torch.cat([spectrum, torch.tensor([lowest], dtype=F64)])
    found = ns.measure(
        quadratic(symmetric(300, spectrum, seed=3), normal(9, 300, seed=4)), normal(300), batch_size=2, k=15
    )
    smallest = found.smallest_eigenvalue
    assert abs(smallest.value - lowest) <= 1e-2 * max(0.5, lowest)
    assert abs(smallest.value - lowest) <= smallest.stderr + 1e-9
    assert smallest.cost < 150
