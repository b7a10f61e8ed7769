"""Tr(AB) from pairs of samples: against tables of all pairs, and against dense autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import noisescape as ns
from benchmarks.pair_table import PairedColumns, PairedCurvature
from cases import F64, classes, normal
from noisescape.linops import DenseOperator, SampleColumns, product_trace
from noisescape.linops.paired_samples import (
    AHEAD,
    FEWEST,
    FIRST_ROUNDS,
    MOST_ROUNDS,
    Pairing,
    effective_number,
    peculiar,
    standard_error,
)

COUNT = 80


def table(interaction: float, seed: int = 0, count: int = COUNT) -> Tensor:
    """Rows and columns that differ by a third of the mean, and what is peculiar to pairs."""
    rows, columns = normal(count, 1, seed=seed) / 3, normal(1, count, seed=seed + 1) / 3
    own = torch.eye(count, dtype=F64)
    return 1 + rows + columns + interaction * normal(count, count, seed=seed + 2) + own


def traced(pairs: Tensor, seed: int = 0, **options: Any) -> ns.Estimate:
    return product_trace(PairedCurvature(pairs), PairedColumns(len(pairs)), seed=seed, **options)


def test_a_round_has_every_column_and_every_matrix_once() -> None:
    pairs = table(1.0)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    pairing = Pairing(PairedCurvature(pairs).over_samples(), PairedColumns(COUNT).columns_of_samples(), order)
    for rounds in (range(5), range(5, 7), range(COUNT - 1, COUNT)):
        found = pairing.forms(rounds)
        for column, shift in enumerate(rounds):
            expected = [pairs[order[place - shift], order[place]] for place in range(COUNT)]
            assert_close(found[:, column], torch.stack(expected))


@pytest.mark.parametrize("rounds", [range(5), range(17, 25), range(COUNT - 3, COUNT)])
def test_a_column_is_computed_about_once(rounds: range) -> None:
    """Again only around the end of the circle, whichever the rounds are."""
    computed: list[int] = []
    columns = PairedColumns(COUNT).columns_of_samples()

    def counted(samples: Tensor) -> Tensor:
        computed.extend(samples.tolist())
        return columns.at(samples)

    pairing = Pairing(
        PairedCurvature(table(1.0)).over_samples(), SampleColumns(COUNT, counted), torch.arange(COUNT)
    )
    pairing.forms(rounds)
    assert set(computed) == set(range(COUNT))
    assert len(computed) <= COUNT + len(rounds) + 2 * AHEAD


def test_all_rounds_together_are_the_trace() -> None:
    pairs = table(1.0)
    pairing = Pairing(
        PairedCurvature(pairs).over_samples(), PairedColumns(COUNT).columns_of_samples(), torch.arange(COUNT)
    )
    assert_close(pairing.forms(range(COUNT)).mean(), pairs.mean())


@pytest.mark.parametrize(("count", "rounds"), [(COUNT, 4), (COUNT, 3), (81, 5), (64, 2)])
def test_the_error_is_that_of_a_dense_fit(count: int, rounds: int) -> None:
    pairs, shifts = table(0.5, count=count), torch.arange(1, rounds + 1)
    forms = torch.stack([pairs[(torch.arange(count) - k) % count, torch.arange(count)] for k in shifts], dim=1)
    matrix = torch.arange(count).repeat_interleave(rounds)
    column = (matrix - shifts.repeat(count)) % count
    axes = torch.eye(count, dtype=F64)
    design, values = torch.cat([axes[matrix], axes[column]], dim=1), forms.flatten()
    left = values - design @ (torch.linalg.pinv(design) @ values)
    free = rounds * count - int(torch.linalg.matrix_rank(design))
    assert_close(peculiar(forms).flatten(), left, rtol=1e-8, atol=1e-10)
    stderr, dof = standard_error(forms)
    assert stderr == pytest.approx(math.sqrt(float(left.square().sum()) / free / (rounds * count)), rel=1e-9)
    assert free / 2 < dof <= free  # normal numbers, whose kurtosis is 3, as seen in so many


@pytest.mark.usefixtures("busy")
def test_its_memory_can_be_forecast() -> None:
    risk = network()
    found = ns.forecast_memory(
        risk, lambda risk, theta: product_trace(risk.hessian(theta), risk.noise_covariance(theta, 5))
    )
    assert found > risk.dimension * 8


def test_what_is_not_peculiar_to_pairs_leaves_no_error() -> None:
    pairs = table(0.0)
    found = traced(pairs)
    assert found.value == pytest.approx(float(pairs.mean()), rel=1e-9)
    assert found.stderr < 1e-6
    assert found.cost == FIRST_ROUNDS + 1


@pytest.mark.parametrize("interaction", [0.15, 0.4])
def test_intervals_cover_and_the_value_is_unbiased(interaction: float) -> None:
    """As many rounds as the tolerance takes: of one interaction the first, of the other more."""
    pairs = table(interaction)
    found = [traced(pairs, seed) for seed in range(300)]
    values = torch.tensor([one.value for one in found], dtype=F64)
    exact = float(pairs.mean())
    assert abs(float(values.mean()) - exact) <= 4 * float(values.std()) / math.sqrt(len(found))
    covered = sum(low <= exact <= high for low, high in (one.interval() for one in found))
    assert covered >= 270  # of 300, at 95 %: fewer in one case in ten thousand
    assert all(one.relative_stderr <= 0.01 for one in found)
    costs = {one.cost for one in found}
    assert (costs == {FIRST_ROUNDS + 1}) is (interaction == 0.15)
    assert max(costs) <= MOST_ROUNDS + 1


@pytest.mark.parametrize(
    ("pairs", "spent"),
    [
        pytest.param(table(0.2, count=FEWEST - 1), 0, id="few samples"),
        pytest.param(table(5.0), FIRST_ROUNDS + 1, id="much interaction"),
        pytest.param(table(0.1) - 1, FIRST_ROUNDS + 1, id="near 0"),
        pytest.param(torch.diag(1 + 0 * normal(COUNT)) + 1e-3, FIRST_ROUNDS + 1, id="own matrices only"),
    ],
)
def test_another_way_is_taken_where_it_is_cheaper(pairs: Tensor, spent: int) -> None:
    """These are small enough to be formed: the other way is exact."""
    found = traced(pairs, deflate=100)
    assert found.value == pytest.approx(float(pairs.mean()), rel=1e-9, abs=1e-12)
    assert found.stderr == 0
    assert found.cost >= spent


def test_where_few_samples_carry_the_trace_their_pairs_are_not_missed() -> None:
    """Six of the samples, as where a network has fitted the others; most rounds see none of their 30 pairs."""
    count = 400
    heavy = torch.zeros(count, dtype=F64)
    heavy[:6] = 1
    pairs = 1e-3 + 100 * heavy[:, None] * heavy[None, :]
    found = traced(pairs, deflate=count)
    assert found.value == pytest.approx(float(pairs.mean()), rel=1e-9)
    assert effective_number(pairs.diagonal()) < 7


def test_a_rare_pair_widens_the_interval_or_another_way_is_taken() -> None:
    forms = 1 + 0.01 * normal(COUNT, 4)
    plain = standard_error(forms)[1]
    forms[0, 0] += 5
    assert standard_error(forms)[1] < plain / 10


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any sample keeps a processor busy."""
    monkeypatch.setattr("noisescape.risk.chunking.BUSY_BYTES", 0)
    monkeypatch.setattr("noisescape.risk.chunking.DOMINANT", 10**6)


def network() -> ns.EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(F64)
    data = normal(COUNT, 6, seed=1), classes(COUNT, of=3, seed=2)
    return ns.EmpiricalRisk(model, nn.functional.cross_entropy, data)


@pytest.mark.usefixtures("busy")
def test_pairs_of_a_network_are_those_of_dense_autograd() -> None:
    risk = network()
    theta = risk.parameters()
    rows = risk.per_sample_gradients(theta)
    deviations = rows - rows.mean(0)

    def loss(point: Tensor) -> Tensor:
        """Of sample 4, by hand."""
        first, bias, second, last = point.split([48, 8, 24, 3])
        hidden = torch.tanh(normal(COUNT, 6, seed=1)[4] @ first.view(8, 6).T + bias)
        return nn.functional.cross_entropy(hidden @ second.view(3, 8).T + last, classes(COUNT, of=3, seed=2)[4])

    mean = risk.hessian(theta).over_samples()
    columns = risk.noise_covariance(theta, 5).columns_of_samples()
    assert mean is not None
    assert columns is not None
    some = torch.tensor([3, 7, 0])
    assert_close(columns.at(some), 5**-0.5 * deviations[some].mT, rtol=1e-10, atol=1e-13)
    expected = torch.autograd.functional.hessian(loss, theta)
    assert_close(mean.of_one(4).dense(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("busy")
def test_the_indicator_of_a_network_is_covered_by_pairs() -> None:
    risk = network()
    theta = risk.parameters()
    hessian, noise = risk.hessian(theta), risk.noise_covariance(theta, 5)
    exact = float((hessian.dense() * noise.dense()).sum())
    found = [
        product_trace(risk.hessian(theta), noise, control=risk.gauss_newton(theta), rtol=0.2, seed=seed)
        for seed in range(12)
    ]
    assert {one.cost for one in found} == {FIRST_ROUNDS + 1}
    assert all(abs(one.value - exact) <= 4 * one.stderr for one in found)


def test_small_samples_and_other_operators_are_not_paired() -> None:
    """A sample of a few numbers leaves a processor waiting; a matrix that is given is no mean over samples."""
    risk = network()
    assert risk.hessian(risk.parameters()).over_samples() is None
    assert DenseOperator(torch.eye(3)).over_samples() is None
    assert DenseOperator(torch.eye(3)).columns_of_samples() is None
