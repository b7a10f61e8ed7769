"""The spectral density is a density, with the moments of its spectrum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import F64, symmetric
from matrices import MIXED, SPECTRA
from noisescape.linops import DenseOperator, DiagonalOperator, FunctionOperator, IsotropicOperator, spectral_density
from noisescape.measurement.memory import AllocationTracker


def moments(spectrum: Tensor, power: int) -> float:
    return float((spectrum**power).mean())


@pytest.mark.parametrize("name", ["distinct", "repeated", "rank five", "all equal", "zero", "small and dense"])
def test_spectral_density_is_a_density(name: str) -> None:
    spectrum = SPECTRA[name]
    found = spectral_density(DenseOperator(symmetric(len(spectrum), spectrum, seed=3)), points=4096)
    assert found.grid.shape == found.density.shape == found.stderr.shape == (4096,)
    assert bool(torch.isfinite(found.density).all())
    assert bool((found.density >= 0).all())
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-3)
    assert_close(found.weights.sum(1), torch.ones(len(found.weights), dtype=F64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["distinct", "repeated", "rank five", "all equal", "small and dense"])
@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_moments_of_the_density_are_normalised_traces_of_powers(name: str, power: int) -> None:
    spectrum = SPECTRA[name]
    operator = DenseOperator(symmetric(len(spectrum), spectrum, seed=3))
    found = spectral_density(operator, steps=20, probes=16, seed=1)
    moment, exact = found.moment(power), moments(spectrum, power)
    assert abs(moment.value - exact) <= 4 * moment.stderr + 1e-9 * float(spectrum.abs().max()) ** power
    assert moment.stderr <= 0.6 * float(spectrum.abs().max()) ** power


def test_each_probes_quadrature_is_exact_for_low_powers() -> None:
    """With m steps zᵀAᵖz/D is reproduced for p < 2m; checked against the mean of the probes' own powers."""
    matrix = symmetric(30, torch.linspace(-1, 2, 30, dtype=F64), seed=3)
    found = spectral_density(DenseOperator(matrix), steps=4, probes=5, seed=2)
    signs = 2 * torch.randint(0, 2, (30, 5), generator=torch.Generator().manual_seed(2)).to(F64) - 1
    for power in range(8):
        expected = ((torch.linalg.matrix_power(matrix, power) @ signs) * signs).sum(0) / 30
        assert_close((found.weights * found.nodes**power).sum(1), expected, rtol=1e-10, atol=1e-10)
    beyond = ((torch.linalg.matrix_power(matrix, 8) @ signs) * signs).sum(0) / 30
    assert float(((found.weights * found.nodes**8).sum(1) - beyond).abs().max()) > 1e-6


def test_density_agrees_with_the_smoothed_spectrum_within_its_error() -> None:
    spectrum = SPECTRA["distinct"]
    operator = DenseOperator(symmetric(160, spectrum, seed=3))
    found = spectral_density(operator, steps=60, probes=30, bandwidth=0.3, seed=4)
    kernel = torch.exp(-0.5 * ((found.grid[:, None] - spectrum) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi))
    exact = kernel.mean(1)
    assert float(((found.density - exact).abs() - 5 * found.stderr).max()) < 1e-4
    assert found.cost == 60 * 30


def test_exhausted_krylov_spaces_put_all_weight_on_the_true_eigenvalues() -> None:
    """Three distinct eigenvalues are found after three steps; the rest must carry no weight."""
    spectrum = torch.cat([torch.full((20,), 1.0), torch.full((15,), 4.0), torch.full((5,), 10.0)]).to(F64)
    found = spectral_density(DenseOperator(symmetric(40, spectrum, seed=3)), steps=30, probes=4)
    distance = (found.nodes[..., None] - torch.tensor([1.0, 4, 10], dtype=F64)).abs().amin(-1)
    astray = found.weights[distance > 1e-6]
    assert float(astray.sum()) < 1e-10 * 4


@pytest.mark.parametrize("value", [1.0, 1000.0])
def test_density_of_a_single_eigenvalue_is_where_it_is(value: float) -> None:
    operator = IsotropicOperator(torch.tensor(value, dtype=F64), 50)
    found = spectral_density(operator, points=4096)
    mean = float(torch.trapezoid(found.density * found.grid, found.grid))
    assert mean == pytest.approx(value, rel=1e-3)
    assert float(found.grid.min()) <= value <= float(found.grid.max())


@pytest.mark.parametrize(("steps", "probes"), [(60, 4), (25, 8), (90, 2)])
def test_a_densitys_memory_is_its_lanczos_vectors(steps: int, probes: int) -> None:
    operator = DiagonalOperator(torch.linspace(-1, 3, 20_000, dtype=F64))
    with AllocationTracker() as ledger:
        spectral_density(operator, steps=steps, probes=probes, points=16)
    assert ledger.peak <= 1.3 * steps * probes * operator.size * 8


def test_a_density_keeps_its_hands_off_what_a_product_returns() -> None:
    """The identity may return the very block that it was given."""
    found = spectral_density(FunctionOperator(lambda block: block, 50, dtype=F64, device="cpu"), steps=3)
    assert found.moment(1).value == pytest.approx(1, rel=1e-12)
    assert found.cost == 3 * 8


@pytest.mark.parametrize(("options", "message"), [({"steps": 0}, "at least 1"), ({"bandwidth": -1.0}, "positive")])
def test_bad_arguments_of_a_density_are_refused_before_any_product(options, message: str) -> None:
    operator = DenseOperator(MIXED)
    with pytest.raises(ValueError, match=message):
        spectral_density(operator, **options)
    assert operator.products == 0
