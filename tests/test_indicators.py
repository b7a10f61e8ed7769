"""``measure`` and expected sharpness against dense linear algebra, and what the theory promises of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, F64, Case, bowl_gradients, bowl_hessian, bowl_risk, classes, normal, symmetric
from noisescape.linops import FunctionOperator
from noisescape.runs.run import strict_json
from noisescape.theory import decay_exponent, indicator_bounds, projection_coefficient
from noisescape.theory.landscapes import quadratic

FIGURES = (
    "loss",
    "gradient_norm",
    "trace_h",
    "trace_sigma",
    "trace_h_sigma",
    "isotropic_reference",
    "anisotropy",
    "lower_bound",
    "upper_bound",
    "projection_coefficient",
    "decay_exponent",
    "alignment",
    "noise_scale",
    "curvature_noise_scale",
    "smallest_eigenvalue",
)


def reference(
    loss: float,
    gradients: Tensor,
    hessian: Tensor,
    batch_size: int,
    *,
    replacement: bool = True,
    k: int = 20,
) -> dict[str, float]:
    """Every figure from dense matrices, written as in its definition."""
    number, dimension = gradients.shape
    mean = gradients.mean(0)
    per_sample = (gradients - mean).T @ (gradients - mean) / number
    share = 1 if replacement else (number - batch_size) / (number - 1)
    sigma = per_sample * share / batch_size
    values, vectors = torch.linalg.eigh(hessian)
    values, first = values.flip(0), vectors[:, -1]
    k = min(k, dimension - 1)
    figures = {
        "loss": loss,
        "gradient_norm": mean.norm(),
        "trace_h": hessian.trace(),
        "trace_sigma": sigma.trace(),
        "trace_h_sigma": (hessian @ sigma).trace(),
        "isotropic_reference": hessian.trace() * sigma.trace() / dimension,
        "anisotropy": (hessian @ sigma).trace() * dimension / (hessian.trace() * sigma.trace()),
        "upper_bound": dimension * values[0] / hessian.trace(),
        "projection_coefficient": first @ sigma @ first * hessian.trace() / (values[0] * sigma.trace()),
        "lower_bound": first @ sigma @ first * values[0] * dimension / (sigma.trace() * hessian.trace()),
        "alignment": (hessian @ sigma).trace() / (hessian.norm() * sigma.norm()),
        "smallest_eigenvalue": values[-1],
        "noise_scale": per_sample.trace() / (mean @ mean),
        "curvature_noise_scale": (hessian @ per_sample).trace() / (mean @ hessian @ mean),
    }
    found = {name: float(value) for name, value in figures.items()}
    if dimension > 1:
        after = float(values[k])
        found["decay_exponent"] = (
            math.log(float(values[0]) / after) / math.log(dimension) if after > 0 else math.inf
        )
    return found


def of_case(case: Case, batch_size: int, **options: object) -> dict[str, float]:
    loss = float(case.losses(case.theta).mean())
    return reference(loss, case.gradients(), case.hessian(), batch_size, **options)


# ---------------------------------------------------------------------- measure against dense autograd


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


WIDER = Case(
    lambda: nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 3)),
    normal(120, 10, seed=1),
    classes(120, of=3, seed=2),
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("by_probes")
def test_a_larger_networks_figures_lie_within_their_errors(seed: int) -> None:
    """171 parameters, so that Lanczos and probes are at work; Student's quantile where there are few probes."""
    found = ns.measure(WIDER.risk(), WIDER.theta, batch_size=8, k=5, seed=seed)
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
    runs = [ns.measure(risk, WIDER.theta, batch_size=8, k=5, rtol=0.02, seed=seed) for seed in range(60)]
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
    slopes = normal(6, dimension, seed=4)
    theta = normal(dimension, seed=5)
    found = ns.measure(quadratic(hessian, slopes), theta, batch_size=2)
    gradients = theta @ hessian + slopes - slopes.mean(0)
    expected = reference(float(0.5 * theta @ hessian @ theta), gradients, hessian, 2)
    for figure, value in expected.items():
        assert found.estimates()[figure].value == pytest.approx(value, rel=1e-9), figure
    assert math.isnan(found.decay_exponent.value) == (dimension == 1)
    assert found.k == max(1, dimension - 1)
    assert len(found.hessian.values) == dimension
    assert "Tr(HΣ)" in str(found)


# ---------------------------------------------------------------------- figures by hand


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_noise_scales_are_in_samples_and_do_not_depend_on_the_batch(batch_size: int, replacement: bool) -> None:
    """Gradients (1 ± 2, 3 ± 1): ‖ḡ‖² = 10, TrC = 5; H = diag(4, 2), Tr(HC) = 18, ḡᵀHḡ = 22."""
    hessian = torch.diag(torch.tensor([4.0, 2.0], dtype=F64))
    slopes = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0], [2.0, 1.0], [-2.0, -1.0]])
    theta = torch.tensor([0.25, 1.5], dtype=F64)
    found = ns.measure(quadratic(hessian, slopes.to(F64)), theta, batch_size=batch_size, replacement=replacement)
    share = 1 / batch_size if replacement else (6 - batch_size) / (5 * batch_size)
    assert found.noise_scale.value == pytest.approx(5 / 10, rel=1e-12)
    assert found.curvature_noise_scale.value == pytest.approx(18 / 22, rel=1e-12)
    assert found.trace_sigma.value == pytest.approx(5 * share, rel=1e-12)
    assert found.trace_h_sigma.value == pytest.approx(18 * share, rel=1e-12)
    assert found.anisotropy.value == pytest.approx(18 / (6 * 5 / 2), rel=1e-12)


def test_decay_exponent_is_read_after_k_eigenvalues() -> None:
    values = torch.tensor([100.0, 50.0, 1.0, 0.1], dtype=F64)
    risk = quadratic(torch.diag(values), normal(5, 4, seed=1))
    for k, after in ((1, 50.0), (2, 1.0), (3, 0.1), (20, 0.1)):
        found = ns.measure(risk, torch.ones(4, dtype=F64), batch_size=1, k=k).decay_exponent.value
        assert found == pytest.approx(math.log(100 / after) / math.log(4), rel=1e-12)
    assert decay_exponent(100.0, 1.0, 10_000) == pytest.approx(0.5)
    assert decay_exponent(1.0, 0.0, 5) == math.inf
    assert decay_exponent(1.0, -1.0, 5) == math.inf


# ---------------------------------------------------------------------- what theory promises

SPECTRUM = torch.tensor([5.0, 2.0, 1.0, 0.3, 0.05, 0.0], dtype=F64)
PSD = symmetric(6, SPECTRUM, seed=7)
HERE = normal(6, seed=8)


def with_covariance(covariance: Tensor) -> ns.EmpiricalRisk:
    """L = ½θᵀ·PSD·θ and C given exactly: slopes ±√D times the columns of a root."""
    values, vectors = torch.linalg.eigh(covariance)
    columns = (vectors * values.clamp_min(0).sqrt()).T * math.sqrt(len(covariance))
    return quadratic(PSD, torch.cat([columns, -columns]))


@pytest.mark.parametrize("seed", range(10))
def test_both_bounds_hold_for_positive_curvature(seed: int) -> None:
    slopes = normal(9, 6, seed=seed) * torch.logspace(0, -2, 6)[torch.randperm(6)]
    found = ns.measure(quadratic(PSD, slopes), HERE, batch_size=2)
    assert found.lower_bound.value <= found.anisotropy.value * (1 + 1e-12)
    assert found.anisotropy.value <= found.upper_bound.value * (1 + 1e-12)
    assert found.upper_bound.value == pytest.approx(6 * 5 / 8.35, rel=1e-12)


def test_rank_one_noise_along_the_first_eigenvector_attains_both_bounds() -> None:
    first = torch.linalg.eigh(PSD).eigenvectors[:, -1]
    found = ns.measure(with_covariance(torch.outer(first, first)), HERE, batch_size=2)
    assert found.anisotropy.value == pytest.approx(found.upper_bound.value, rel=1e-9)
    assert found.lower_bound.value == pytest.approx(found.upper_bound.value, rel=1e-9)
    assert found.projection_coefficient.value == pytest.approx(8.35 / 5, rel=1e-9)


def test_isotropic_noise_is_its_own_reference() -> None:
    found = ns.measure(with_covariance(3 * torch.eye(6, dtype=F64)), HERE, batch_size=2)
    assert found.anisotropy.value == pytest.approx(1, rel=1e-12)
    assert found.trace_h_sigma.value == pytest.approx(1.5 * 8.35, rel=1e-12)
    assert found.alignment.value == pytest.approx(8.35 / float(SPECTRUM.norm()) / math.sqrt(6), rel=1e-12)
    assert found.projection_coefficient.value == pytest.approx(8.35 / 5 / 6, rel=1e-12)


def test_noise_proportional_to_curvature_is_fully_aligned() -> None:
    found = ns.measure(with_covariance(0.7 * PSD), HERE, batch_size=4)
    assert found.alignment.value == pytest.approx(1, rel=1e-9)
    assert found.projection_coefficient.value == pytest.approx(1, rel=1e-9)
    assert found.lower_bound.value == pytest.approx(25 * 6 / 8.35**2, rel=1e-9)
    assert found.anisotropy.value == pytest.approx(float(SPECTRUM @ SPECTRUM) * 6 / 8.35**2, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_for_any_positive_matrices(seed: int) -> None:
    curvature, noise = (symmetric(5, normal(5, seed=seed + shift).exp(), seed=seed + shift) for shift in (0, 99))
    values, vectors = torch.linalg.eigh(curvature)
    top, along = float(values[-1]), float(vectors[:, -1] @ noise @ vectors[:, -1])
    total, spread = float(curvature.trace()), float(noise.trace())
    bounds = indicator_bounds(projection_coefficient(along, top, total, spread), top, total, 5)
    share = 5 * float((curvature * noise).sum()) / (total * spread)
    assert bounds.lower <= share <= bounds.upper
    # a·λ₁²·D/(TrH)² = D·λ₁·u₁ᵀΣu₁/(TrH·TrΣ): what the top direction alone contributes
    assert bounds.lower == pytest.approx(5 * top * along / (total * spread), rel=1e-12)


# ---------------------------------------------------------------------- limits that must not crash


def no_noise() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(PSD, torch.zeros(4, 6, dtype=F64)), 2, True


def whole_batch() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(PSD, normal(4, 6, seed=1)), 4, False


def single_sample() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(PSD, normal(1, 6, seed=1)), 1, False


def no_curvature() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(torch.zeros(6, 6, dtype=F64), normal(5, 6, seed=1)), 2, True


def saddle() -> tuple[ns.EmpiricalRisk, int, bool]:
    return quadratic(torch.diag(torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=F64)), normal(5, 6, seed=1)), 2, True


LIMITS = [no_noise, whole_batch, single_sample, no_curvature, saddle]


@pytest.mark.parametrize("theta", [HERE, torch.zeros(6, dtype=F64)], ids=["slope", "minimum"])
@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_not_defined_is_not_finite_and_the_rest_stands(limit: object, theta: Tensor) -> None:
    risk, batch_size, replacement = limit()
    found = ns.measure(risk, theta, batch_size=batch_size, replacement=replacement)
    assert all(math.isfinite(found.estimates()[name].value) for name in FIGURES[:6])
    if limit in (no_noise, whole_batch, single_sample):
        assert found.trace_sigma.value == found.trace_h_sigma.value == 0
    if limit is whole_batch:  # no noise is left, but its shape is known
        c = ns.measure(risk, theta, batch_size=1)
        for name in ("anisotropy", "projection_coefficient", "alignment", "noise_scale"):
            assert found.estimates()[name] == c.estimates()[name]
            assert math.isfinite(found.estimates()[name].value) or name == "noise_scale"
    elif limit in (no_noise, single_sample):
        assert math.isnan(found.anisotropy.value)
        assert math.isnan(found.projection_coefficient.value)
        assert found.upper_bound.value == pytest.approx(6 * 5 / 8.35, rel=1e-9)
    elif limit is no_curvature:
        assert found.trace_h.value == found.trace_h_sigma.value == 0
        assert not math.isfinite(found.upper_bound.value)
    else:
        assert found.trace_h.value == 0
        assert not math.isfinite(found.upper_bound.value)
        assert found.decay_exponent.value == math.inf
    assert str(found)
    json.loads(strict_json(found.to_dict()), parse_constant=pytest.fail)


# ---------------------------------------------------------------------- printing, JSON, errors


@pytest.mark.usefixtures("by_probes")
def test_the_table_shows_every_figure(mlp: Case) -> None:
    found = ns.measure(WIDER.risk(), WIDER.theta, batch_size=8, k=5)
    text = str(found)
    assert "D = 171, N = 120, B = 8 with replacement" in text
    for figure, estimate in found.estimates().items():
        assert str(estimate) in text, figure
    for symbol in ("‖ḡ‖", "Tr H", "Tr Σ", "Tr(HΣ)", "Tr(HΣ̄)", "λ(H)", "λ(Σ)", "95 % interval"):
        assert symbol in text
    assert f"{float(found.hessian.values[0]):.3g}" in text
    assert f"{float(found.noise.values[0]):.3g}" in text
    low, high = found.trace_h.interval()
    assert f"{low:.4g} … {high:.4g}" in text
    alone = ns.measure(mlp.risk(), mlp.theta, batch_size=3, replacement=False)
    assert "B = 3 without replacement" in str(alone)


def test_the_dictionary_is_strict_json_with_every_figure(mlp: Case) -> None:
    found = ns.measure(WIDER.risk(), WIDER.theta, batch_size=8, k=5)
    back = json.loads(strict_json(found.to_dict()), parse_constant=pytest.fail)
    settings = {"dimension": 171, "sample_count": 120, "batch_size": 8, "replacement": True, "k": 5}
    assert back.keys() == {*FIGURES, "hessian_eigenvalues", "noise_eigenvalues", *settings}
    assert {name: back[name] for name in settings} == settings
    assert back["hessian_eigenvalues"] == found.hessian.values.tolist()
    assert back["noise_eigenvalues"] == found.noise.values.tolist()
    for figure, estimate in found.estimates().items():
        low, high = estimate.interval()
        assert back[figure] == {"value": estimate.value, "stderr": estimate.stderr, "low": low, "high": high}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 12, "replacement": False}, "exceeds the 11 samples"),
        ({"batch_size": 3, "k": 0}, "k must be at least 1, not 0"),
        ({"batch_size": 3, "rtol": 0.0}, "rtol is a relative standard error and must be positive"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str, mlp: Case) -> None:
    with pytest.raises(ValueError, match=message):
        ns.measure(mlp.risk(), mlp.theta, **options)


def test_replicas_are_refused(mlp: Case) -> None:
    with pytest.raises(ValueError, match=r"θ must have shape \(31,\)"):
        ns.measure(mlp.risk(), mlp.theta.expand(2, -1), batch_size=3)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_sample(mlp: Case) -> None:
    inputs = mlp.inputs.clone()
    inputs[4] = math.nan
    risk = mlp.risk().with_data((inputs, mlp.targets))
    with pytest.raises(ns.NonFiniteLossError, match="sample 4"):
        ns.measure(risk, mlp.theta, batch_size=3)


# ---------------------------------------------------------------------- expected sharpness


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("place", ["minimum", "slope"])
def test_signed_sharpness_of_a_quadratic_is_its_trace(place: str, seed: int) -> None:
    """ΔL = gᵀν + ½νᵀHν: mean (δ²/2)TrH, variance δ²‖g‖² + (δ⁴/2)TrH²."""
    theta, delta, draws = (HERE if place == "slope" else 0 * HERE), 0.3, 1000
    risk = quadratic(PSD, normal(3, 6, seed=1))
    found = ns.expected_sharpness(risk, theta, delta=delta, draws=draws, seed=seed)
    slope = PSD @ theta
    variance = delta**2 * float(slope @ slope) + delta**4 / 2 * float((PSD * PSD).sum())
    assert abs(found.signed.value - delta**2 / 2 * 8.35) <= 4 * found.signed.stderr
    assert found.signed.stderr == pytest.approx(math.sqrt(variance / draws), rel=0.2)
    assert found.absolute.value >= abs(found.signed.value)
    assert (found.absolute.value == pytest.approx(found.signed.value, rel=1e-12)) == (place == "minimum")
    assert found.delta == delta
    assert found.signed.dof == draws - 1


def test_absolute_sharpness_sees_a_slope_that_the_signed_one_averages_away() -> None:
    flat = quadratic(torch.zeros(6, 6, dtype=F64), torch.zeros(2, 6, dtype=F64))
    risk = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, sample: (theta * sample).sum(-1), HERE.expand(2, -1), torch.zeros(6, dtype=F64)
    )
    found = ns.expected_sharpness(risk, HERE, delta=0.1, draws=2000)
    expected = 0.1 * float(HERE.norm()) * math.sqrt(2 / math.pi)
    assert abs(found.absolute.value - expected) <= 4 * found.absolute.stderr
    assert abs(found.signed.value) <= 4 * found.signed.stderr
    assert ns.expected_sharpness(flat, HERE).absolute.value == 0


def test_sharpness_of_a_network_is_its_trace_to_second_order(mlp: Case) -> None:
    found = ns.expected_sharpness(mlp.risk(), mlp.theta, delta=0.03, draws=3000, seed=1)
    expected = 0.03**2 / 2 * float(mlp.hessian().trace())
    assert abs(found.signed.value - expected) <= 4 * found.signed.stderr
    assert found.absolute.value >= abs(found.signed.value)


def test_sharpness_is_reproducible_and_prints_both_figures() -> None:
    risk = quadratic(PSD, normal(3, 6, seed=1))
    one = ns.expected_sharpness(risk, HERE, draws=5, seed=2)
    assert one == ns.expected_sharpness(risk, HERE, draws=5, seed=2)
    assert one != ns.expected_sharpness(risk, HERE, draws=5, seed=3)
    assert str(one.signed) in str(one)
    assert str(one.absolute) in str(one)


def test_a_perturbation_into_the_infinite_makes_the_sharpness_infinite() -> None:
    risk = ns.EmpiricalRisk.from_losses(
        lambda theta: torch.where(theta > 0, torch.inf, theta).sum(0, keepdim=True), -torch.ones(1, dtype=F64)
    )
    found = ns.expected_sharpness(risk, -torch.ones(1, dtype=F64), delta=2.0, draws=50)
    assert not math.isfinite(found.signed.value)
    assert not math.isfinite(found.absolute.value)
    with pytest.raises(ns.NonFiniteLossError):
        ns.expected_sharpness(risk, torch.ones(1, dtype=F64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 1}, "draws = 1, but a standard error needs at least 2"),
        ({"delta": 0.0}, "delta must be positive"),
        ({"delta": math.nan}, "delta must be positive"),
    ],
)
def test_bad_sharpness_arguments_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ns.expected_sharpness(quadratic(PSD, normal(3, 6)), HERE, **options)
