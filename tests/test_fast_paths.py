"""Cheaper ways to the same numbers: each against the plain way it replaces."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import noisescape as ns
from cases import CASES, F64, generator, normal, symmetric
from noisescape import linops
from noisescape.experiments.data import corrupted_digits
from noisescape.experiments.models import digits_net
from noisescape.linops import DenseOperator, LowRankOperator, nystrom_pairs, product_trace, trace
from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.gradient_covariance import gradient_moments, leading_pairs, sketched_pairs
from noisescape.risk.hessian import Hessian, followed_hessian_pairs, leading_hessian_pairs

SIZE = 60
DECAYING = 2.0 ** -torch.arange(SIZE, dtype=F64)


# ---------------------------------------------------------------------- blocks through the gradient


@pytest.mark.parametrize("name", CASES)
def test_blocks_pushed_through_the_gradient_are_hessian_products(name: str) -> None:
    case = CASES[name]
    risk = case.risk()
    block = normal(len(case.theta), 5, seed=3)
    found = Hessian(risk, case.theta) @ block
    assert_close(found, case.hessian() @ block, rtol=1e-9, atol=1e-10)
    if risk.pushes_gradients:
        assert_close(risk.gradient_derivatives(case.theta, block), found, rtol=1e-12, atol=1e-12)


def test_ordinary_networks_push_gradients_and_custom_functions_do_not() -> None:
    pushing = {name for name, case in CASES.items() if case.risk().pushes_gradients}
    assert {"conv", "mlp cross-entropy", "tied weights"} <= pushing
    assert not any("without forward" in name for name in pushing)
    assert pushing < set(CASES)


def test_blocks_are_the_same_in_chunks() -> None:
    case = CASES["conv"]
    whole, chunked = case.risk(), case.risk(memory_budget=3_000)
    assert chunked.chunk_size() < case.count
    block = normal(len(case.theta), 5, seed=3)
    assert_close(
        chunked.gradient_derivatives(case.theta, block),
        whole.gradient_derivatives(case.theta, block),
        rtol=1e-12,
        atol=1e-12,
    )


def test_blocks_refuse_the_wrong_shape() -> None:
    case = CASES["conv"]
    with pytest.raises(ValueError, match="directions must have shape"):
        case.risk().gradient_derivatives(case.theta, normal(3, 2))


# ---------------------------------------------------------------------- per-sample gradients


@pytest.mark.parametrize("budget", [None, 3_000])
def test_moments_are_mean_and_variance_of_the_gradients(budget: int | None) -> None:
    case = CASES["conv"]
    mean, variances = gradient_moments(case.risk(memory_budget=budget), case.theta)
    assert_close(mean, case.gradients().mean(0), rtol=1e-10, atol=1e-12)
    assert_close(variances, case.gradients().var(0, correction=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", [None, 3_000])
def test_square_norms_of_the_gradients(budget: int | None) -> None:
    case = CASES["conv"]
    found = case.risk(memory_budget=budget).per_sample_square_norms(case.theta)
    assert_close(found, case.gradients().square().sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_sketched_pairs_capture_what_the_best_rank_does(shape: tuple[int, int]) -> None:
    spectrum = torch.arange(1, 301, dtype=F64) ** -0.7  # slow decay: hard for a sketch
    left, right = torch.linalg.qr(normal(shape[0], 300, seed=1)).Q, torch.linalg.qr(normal(shape[1], 300, seed=2)).Q
    rows = (left * spectrum) @ right.T
    gradients = FactoredGradients.of_rows(rows)
    values, vectors = sketched_pairs(gradients, 20, centred=False)
    assert_close(vectors.T @ vectors, torch.eye(20, dtype=F64), rtol=0, atol=1e-10)
    assert_close(values, spectrum[:20].square(), rtol=0.02, atol=0)
    captured = (rows @ vectors).square().sum()
    assert float(captured / spectrum[:20].square().sum()) > 0.999
    assert all(
        torch.equal(one, other)
        for one, other in zip(sketched_pairs(gradients, 20, centred=False), (values, vectors), strict=True)
    )


def test_sketched_pairs_of_small_matrices_are_exact() -> None:
    rows = normal(30, 50, seed=4)
    found = sketched_pairs(FactoredGradients.of_rows(rows), 5, centred=False)
    assert all(torch.equal(one, other) for one, other in zip(found, leading_pairs(rows, 5), strict=True))


# ---------------------------------------------------------------------- blocks in reverse


@pytest.mark.parametrize("width", [2, 80])
def test_blocks_of_a_network_of_large_weights_go_through_kept_graphs(width: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 3)).to(
            F64
        )
    risk = ns.EmpiricalRisk(model, torch.nn.functional.mse_loss, (normal(12, width, seed=1), normal(12, 3, seed=2)))
    theta = risk.parameters()
    assert risk.bends_blocks() is (width > 2)
    block = normal(risk.dimension, 11, seed=3)
    hessian = Hessian(risk, theta)
    found = hessian @ block
    assert (hessian._graph is not None) is (width > 2)
    singly = torch.stack([risk.hessian_product(theta, column) for column in block.T], dim=1)
    assert_close(found, singly, rtol=1e-9, atol=1e-9 * float(singly.abs().max()))


# ---------------------------------------------------------------------- directions that are followed


def test_nystrom_is_exact_on_the_span_it_was_made_from() -> None:
    matrix = symmetric(SIZE, torch.cat([DECAYING[:4], torch.zeros(SIZE - 4, dtype=F64)]), seed=5)
    top = torch.linalg.eigh(matrix).eigenvectors[:, -4:]
    mixed = top @ torch.linalg.qr(normal(4, 4, seed=6)).Q
    values, vectors, carried = nystrom_pairs(mixed, matrix @ mixed, 4)
    assert_close(values, DECAYING[:4], rtol=1e-10, atol=1e-12)
    assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-9, atol=1e-11)
    assert float(carried) == pytest.approx(float(values.sum()))


def test_nystrom_drops_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([4.0, 1.0, -2.0, 0.0], dtype=F64))
    basis = torch.eye(4, 3, dtype=F64)
    values, vectors, carried = nystrom_pairs(basis, matrix @ basis, 3)
    assert_close(values, torch.tensor([4.0, 1.0, 0.0], dtype=F64))
    assert not vectors[:, 2].any()
    assert float(carried) == 5


def test_nystrom_passes_nan_on() -> None:
    values, vectors, _ = nystrom_pairs(torch.eye(4, 2), torch.full((4, 2), torch.nan), 2)
    assert values.isnan().all()
    assert vectors.isnan().all()


@pytest.fixture(scope="module")
def digits() -> ns.EmpiricalRisk:
    train = corrupted_digits(seed=0, clean=280, corrupted=20).train
    return ns.EmpiricalRisk(digits_net(0), torch.nn.functional.cross_entropy, train)


@pytest.mark.parametrize("k", [1, 5])
def test_followed_pairs_are_the_leading_ones_nearby_and_cost_less(digits: ns.EmpiricalRisk, k: int) -> None:
    start = ns.simulate(digits, ns.GD(), digits.parameters(), lr=0.1, steps=200, record={}, progress=False).theta
    later = ns.simulate(digits, ns.GD(), start, lr=0.1, steps=10, record={}, progress=False).theta
    _, before = leading_hessian_pairs(digits, start, k)
    values, vectors = followed_hessian_pairs(digits, later, k, before, generator())
    wanted, basis = leading_hessian_pairs(digits, later, k)
    assert_close(values, wanted, rtol=0.03, atol=0)
    weights = wanted / wanted.sum()
    assert float((weights * (vectors.T @ basis).square().sum(0)).sum()) > 0.97


def test_directions_that_were_lost_are_found_afresh(digits: ns.EmpiricalRisk) -> None:
    theta = digits.parameters()
    wanted, basis = leading_hessian_pairs(digits, theta, 2)
    astray = normal(digits.dimension, 2, seed=9, dtype=torch.float32)
    values, vectors = followed_hessian_pairs(digits, theta, 2, astray, generator())
    assert_close(values, wanted, rtol=0.05, atol=0)
    assert vectors.shape == basis.shape


def test_following_survives_a_point_where_nothing_is_finite(digits: ns.EmpiricalRisk) -> None:
    theta = torch.full_like(digits.parameters(), torch.nan)
    values, _ = followed_hessian_pairs(
        digits, theta, 2, normal(digits.dimension, 2, dtype=torch.float32), generator()
    )
    assert values.isnan().all()


@pytest.mark.parametrize(
    "name", ["gld-leading", "gld-hessian", "gld-top-eigenvector", "gld-diagonal", "gld-dynamic"]
)
def test_refreshed_noise_has_the_trace_and_shape_of_its_covariance(digits: ns.EmpiricalRisk, name: str) -> None:
    """Along a trajectory roots are followed and sketched; afresh they are exact."""
    dynamics = ns.dynamics_by_name(name, batch_size=20, k=5, refresh=5)
    theta = ns.simulate(digits, ns.GD(), digits.parameters(), lr=0.1, steps=200, record={}, progress=False).theta
    state, stream = dynamics.init(digits, theta), generator()
    for _ in range(6):  # the second refresh is at the last step
        here = theta
        slope, state = dynamics.noisy_gradient(digits, theta, state, stream)
        theta = theta - 0.05 * slope
    followed, afresh = state.covariance, dynamics.covariance(digits, here)
    assert followed is not None
    assert float(followed.trace()) == pytest.approx(float(afresh.trace()), rel=1e-3)
    against = digits.hessian(here) if name in ("gld-hessian", "gld-top-eigenvector") else afresh
    found, wanted = (product_trace(against, operator, deflate=5).value for operator in (followed, afresh))
    assert found == pytest.approx(wanted, rel=0.02)


# ---------------------------------------------------------------------- memory


def test_estimates_hold_fewer_columns_where_they_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for three columns all is done one at a time, and the figures still hold."""
    matrix = symmetric(SIZE, 1 + DECAYING, seed=7)
    factor = normal(SIZE, 40, seed=8)
    exact = float((matrix * (factor @ factor.T)).sum())
    monkeypatch.setattr(linops.operator, "COLUMN_BYTES", 3 * SIZE * 8)
    widest = 0

    class Watched(DenseOperator):
        def _matmat(self, block):
            nonlocal widest
            widest = max(widest, block.shape[1])
            return super()._matmat(block)

    for found, wanted in (
        (product_trace(Watched(matrix), LowRankOperator(factor), rtol=0.02), exact),
        (trace(Watched(matrix), rtol=0.02, deflate=2), float(matrix.trace())),
    ):
        assert abs(found.value - wanted) <= 4 * found.stderr
        assert found.relative_stderr <= 0.02
    assert widest <= 2
