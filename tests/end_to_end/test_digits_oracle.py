"""``measure`` on the digits network against dense matrices, from losses written a second time.

The convolutions are sums over patches and the pooling a maximum over blocks; the Hessian comes from forward over
reverse mode, where the package goes reverse over reverse.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

import noisescape as ns
from cases import F64
from internals import held_data
from noisescape.experiments.digits import DigitsConfig, digits_problem
from noisescape.measurement.indicator import Measurement

pytestmark = pytest.mark.slow

CONFIG = DigitsConfig(gd_steps=200)
SHAPES = ((8, 1, 3, 3), (8,), (16, 8, 2, 2), (16,), (20, 64), (20,), (10, 20), (10,))
EXACT = ("loss", "gradient_norm", "trace_sigma", "noise_scale")
BY_EIGENVECTORS = ("decay_exponent",)


def patches(images: Tensor, side: int) -> Tensor:
    """(n, c, h, w) → (n, h', w', c·side²)."""
    size = images.shape[-1] - side + 1
    shifted = [images[:, :, i : i + size, j : j + size] for i in range(side) for j in range(side)]
    return torch.stack(shifted, -1).permute(0, 2, 3, 1, 4).flatten(3)


def losses(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    parts = [
        part.view(shape)
        for part, shape in zip(theta.split([math.prod(shape) for shape in SHAPES]), SHAPES, strict=True)
    ]
    first, first_bias, second, second_bias, third, third_bias, last, last_bias = parts
    seen = (patches(images, 3)[:, ::2, ::2] @ first.flatten(1).T + first_bias).clamp_min(0).permute(0, 3, 1, 2)
    seen = (patches(seen, 2) @ second.flatten(1).T + second_bias).clamp_min(0).permute(0, 3, 1, 2)
    hidden = (seen.flatten(1) @ third.T + third_bias).clamp_min(0)
    logits = hidden @ last.T + last_bias
    return torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]


@pytest.fixture(scope="module")
def risk() -> ns.EmpiricalRisk:
    return digits_problem(CONFIG, 0).risk.to(F64)


@pytest.fixture(scope="module")
def data(risk: ns.EmpiricalRisk) -> tuple[Tensor, Tensor]:
    return held_data(risk)


@pytest.fixture(scope="module")
def theta(risk: ns.EmpiricalRisk) -> Tensor:
    return ns.simulate(
        risk, ns.GD(), risk.parameters(), lr=CONFIG.gd_lr, steps=200, record={}, progress=False
    ).theta


@pytest.fixture(scope="module")
def dense(theta: Tensor, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    images, labels = data

    def mean(point: Tensor) -> Tensor:
        return losses(point, images, labels).mean()

    def product(direction: Tensor) -> Tensor:
        return jvp(grad(mean), (theta,), (direction,))[1]

    hessian = torch.cat([vmap(product)(block) for block in torch.eye(len(theta), dtype=F64).split(16)])
    gradients = torch.cat(
        [
            jacrev(lambda point, x=x, y=y: losses(point, x, y))(theta)
            for x, y in zip(images.split(100), labels.split(100), strict=True)
        ]
    )
    return {"losses": losses(theta, images, labels), "gradients": gradients, "hessian": hessian}


@pytest.fixture(scope="module")
def expected(dense: dict[str, Tensor]) -> dict[str, float]:
    hessian, gradients = dense["hessian"], dense["gradients"]
    number, dimension = gradients.shape
    mean = gradients.mean(0)
    sigma = (gradients - mean).T @ (gradients - mean) / number / CONFIG.batch_size
    values, vectors = torch.linalg.eigh(hessian)
    along = vectors[:, -1] @ sigma @ vectors[:, -1]
    product, trace_h, trace_sigma = (hessian * sigma).sum(), hessian.trace(), sigma.trace()
    return {
        "loss": float(dense["losses"].mean()),
        "gradient_norm": float(mean.norm()),
        "trace_h": float(trace_h),
        "trace_sigma": float(trace_sigma),
        "trace_h_sigma": float(product),
        "isotropic_reference": float(trace_h * trace_sigma / dimension),
        "anisotropy": float(product * dimension / (trace_h * trace_sigma)),
        "lower_bound": float(along * values[-1] * dimension / (trace_h * trace_sigma)),
        "upper_bound": float(dimension * values[-1] / trace_h),
        "projection_coefficient": float(along * trace_h / (values[-1] * trace_sigma)),
        "decay_exponent": math.log(float(values[-1] / values[-21])) / math.log(dimension),
        "alignment": float(product / (hessian.norm() * sigma.norm())),
        "noise_scale": float(CONFIG.batch_size * trace_sigma / (mean @ mean)),
        "smallest_eigenvalue": float(values[0]),
        "curvature_noise_scale": float(CONFIG.batch_size * product / (mean @ hessian @ mean)),
    }


@pytest.fixture(scope="module")
def found(risk: ns.EmpiricalRisk, theta: Tensor) -> Measurement:
    return ns.measure(risk, theta, batch_size=CONFIG.batch_size, k=20)


def test_the_network_is_the_one_written_here(
    risk: ns.EmpiricalRisk, theta: Tensor, dense: dict[str, Tensor]
) -> None:
    assert len(theta) == sum(math.prod(shape) for shape in SHAPES) == 2118
    torch.testing.assert_close(risk.losses(theta), dense["losses"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(risk.per_sample_gradients(theta), dense["gradients"], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(dense["hessian"], dense["hessian"].T, rtol=1e-9, atol=1e-10)
    probe = torch.randn(2118, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(risk.hessian(theta) @ probe, dense["hessian"] @ probe, rtol=1e-8, atol=1e-8)


def test_every_figure_lies_within_its_interval(found: Measurement, expected: dict[str, float]) -> None:
    assert found.estimates().keys() == expected.keys()
    for name, estimate in found.estimates().items():
        low, high = estimate.interval(0.95)
        slack = 1e-6 * abs(expected[name])
        assert low - slack <= expected[name] <= high + slack, name


def test_the_figures_are_as_sharp_as_was_asked_for(found: Measurement) -> None:
    for name, estimate in found.estimates().items():
        assert estimate.relative_stderr <= (1e-6 if name in EXACT + BY_EIGENVECTORS else 0.03), name


def test_leading_eigenvalues_are_the_dense_ones(found: Measurement, dense: dict[str, Tensor]) -> None:
    values = torch.linalg.eigvalsh(dense["hessian"]).flip(0)[:21]
    torch.testing.assert_close(found.hessian.values, values, rtol=1e-7, atol=1e-9)
    rows = dense["gradients"] - dense["gradients"].mean(0)
    noise = torch.linalg.svdvals(rows)[:20] ** 2 / len(rows) / CONFIG.batch_size
    torch.testing.assert_close(found.noise.values, noise, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_agree(seed: int, risk: ns.EmpiricalRisk, theta: Tensor, expected: dict[str, float]) -> None:
    other = ns.measure(risk, theta, batch_size=CONFIG.batch_size, k=20, seed=seed)
    for name, estimate in other.estimates().items():
        slack = 1e-6 * abs(expected[name])
        assert abs(estimate.value - expected[name]) <= 4 * estimate.stderr + slack, name
