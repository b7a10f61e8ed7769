"""What a gradient covariance claims of itself in the precision it has."""

from __future__ import annotations

import pytest
import torch

import noisescape as ns
from cases import classes, generator, normal
from internals import holds_gradients
from noisescape.linops.probing import rademacher


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spike_does_not_hide_the_bulk(dtype: torch.dtype) -> None:
    """One direction far above many small ones: float32 cannot resolve their pairs, and must not call the rank 1."""
    generator = torch.Generator().manual_seed(0)
    number, dimension = 1500, 1600
    rows = 0.02 * torch.randn(number, dimension, generator=generator, dtype=torch.float64)
    rows[:, 0] = torch.randn(number, generator=generator, dtype=torch.float64)
    rows = rows.to(dtype)
    risk = ns.EmpiricalRisk.from_sample_loss(
        lambda theta, row: (theta * row).sum(-1), rows, torch.zeros(dimension, dtype=dtype)
    )
    covariance = risk.noise_covariance(risk.parameters(), 1)
    identity = ns.linops.DiagonalOperator(torch.ones(dimension, dtype=dtype))
    exact = float((rows.double() - rows.double().mean(0)).square().sum()) / number
    found = ns.product_trace(identity, covariance, rtol=0.01)
    assert found.value == pytest.approx(exact, abs=4 * found.stderr + 1e-5 * exact)
    assert ns.GLDLeading(1, k=20).covariance(risk, risk.parameters()).factor.shape == (dimension, 20)


@pytest.mark.parametrize("budget", [2**16, 2**30], ids=["streamed", "held"])
def test_the_search_for_directions_shares_no_numbers_with_the_probes_of_any_seed(budget: int) -> None:
    """Probes that V was made from would lie in its span: what is outside would seem smaller than it is."""
    count, k = 300, 8
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).double()
    data = normal(count, 16, seed=1), classes(count, of=5, seed=2)
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data, memory_budget=budget)
    covariance = risk.noise_covariance(risk.parameters(), 1)
    assert holds_gradients(risk, risk.parameters()) == (budget > 2**16)
    carried = covariance.split(k).carried
    for seed in range(20):
        probes = rademacher(count, k, carried, generator(seed))
        share = float((carried.T @ probes).square().sum() / probes.square().sum())
        assert share < 2 * k / count
