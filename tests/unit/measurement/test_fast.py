"""The first look against dense autograd: exact where it says so, its intervals honest, its price what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, F64, WIDER, Case, classes, normal, squared_by_hand
from dense_indicators import of_case
from internals import found_out
from noisescape.errors import NonFiniteLossError
from noisescape.risk.passes import hessian_forms
from noisescape.runs.run import strict_json
from noisescape.theory.landscapes import quadratic

EXACT = ("loss", "gradient_norm", "trace_sigma", "noise_scale")
BY_GROUPS = ("trace_h", "trace_h_sigma", "isotropic_reference", "curvature_noise_scale")


@pytest.mark.parametrize(("batch_size", "replacement"), [(1, True), (8, True), (8, False)])
def test_first_order_figures_are_exact(batch_size: int, replacement: bool) -> None:
    found = ns.measure_fast(WIDER.risk(), WIDER.theta, batch_size=batch_size, replacement=replacement)
    expected = of_case(WIDER, batch_size, replacement=replacement, k=5)
    for figure in EXACT:
        estimate = found.estimates()[figure]
        assert estimate.stderr == 0, figure
        assert estimate.value == pytest.approx(expected[figure], rel=1e-9), figure


@pytest.fixture(scope="module")
def runs() -> list[ns.FastMeasurement]:
    """With 150 seeds."""
    risk = WIDER.risk()
    return [ns.measure_fast(risk, WIDER.theta, batch_size=8, seed=seed) for seed in range(150)]


@pytest.mark.slow
@pytest.mark.parametrize("figure", BY_GROUPS)
def test_curvature_is_without_bias_and_covered(figure: str, runs: list[ns.FastMeasurement]) -> None:
    expected = of_case(WIDER, 8, k=5)[figure]
    found = [run.estimates()[figure] for run in runs]
    values = torch.tensor([one.value for one in found], dtype=F64)
    assert abs(float(values.mean()) - expected) <= 4 * float(values.std()) / math.sqrt(len(runs))
    covered = sum(low <= expected <= high for low, high in (one.interval() for one in found))
    assert covered >= 132  # of 150, at 95 %: fewer in one case in ten thousand
    assert {one.dof for one in found} == {7}


@pytest.mark.slow
def test_samples_without_a_gradient_count() -> None:
    """A hinge that half of the samples satisfy: their deviation is −ḡ, not 0."""
    inputs = torch.cat([torch.ones(80, 6, dtype=F64), 1 + 0.1 * normal(80, 6, seed=1)])
    targets = torch.cat([torch.ones(80, dtype=F64), -torch.ones(80, dtype=F64)])[:, None]
    model = nn.Linear(6, 1, bias=False).to(F64)
    nn.init.ones_(model.weight)

    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - targets * outputs).relu().square()[:, 0]

    risk = ns.EmpiricalRisk(model, hinge, (inputs, targets))
    theta = risk.parameters()
    exact = ns.product_trace(risk.hessian(theta), risk.noise_covariance(theta, 1)).value
    found = [ns.measure_fast(risk, theta, batch_size=1, seed=seed).trace_h_sigma for seed in range(60)]
    values = torch.tensor([one.value for one in found], dtype=F64)
    assert abs(float(values.mean()) - exact) <= 4 * float(values.std()) / math.sqrt(60)
    assert sum(low <= exact <= high for low, high in (one.interval() for one in found)) >= 50


@pytest.mark.slow
def test_a_quotient_by_what_is_poorly_known_is_no_number(runs: list[ns.FastMeasurement]) -> None:
    for run in runs:
        assert math.isnan(run.anisotropy.value) == (run.trace_h.relative_stderr > 0.2)
    assert sum(math.isnan(run.anisotropy.value) for run in runs) > 100


@pytest.mark.slow
def test_a_quotient_is_covered_where_its_denominator_is_known() -> None:
    """Linear regression: every Hessian has about the same trace."""
    case = Case(
        lambda: nn.Linear(30, 1), normal(400, 30, seed=1), normal(400, 1, seed=2), nn.MSELoss(), squared_by_hand
    )
    risk, expected = case.risk(), of_case(case, 8)
    found = [ns.measure_fast(risk, case.theta, batch_size=8, seed=seed).anisotropy for seed in range(100)]
    assert not any(math.isnan(one.value) for one in found)
    covered = sum(low <= expected["anisotropy"] <= high for low, high in (one.interval() for one in found))
    assert covered >= 86  # of 100, at 95 %: fewer in one case in ten thousand


def test_it_costs_five_products_with_half_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in samples that forms of the Hessian were taken of, and in forms."""
    seen: list[tuple[int, int]] = []

    def counting(risk: ns.EmpiricalRisk, theta: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        seen.append((risk.sample_count, len(vectors)))
        return hessian_forms(risk, theta, vectors)

    monkeypatch.setattr("noisescape.measurement.fast.hessian_forms", counting)
    found = ns.measure_fast(WIDER.risk(), WIDER.theta, batch_size=8)
    assert seen == 8 * [(WIDER.count // 16, 5)]
    assert found.trace_h.cost == 8 * 5


def test_it_finds_out_no_more_of_a_model_than_it_needs() -> None:
    """Each entry of that table costs as much as many products where samples are few."""
    risk = WIDER.risk()
    ns.measure_fast(risk, WIDER.theta, batch_size=8)
    assert found_out(risk) == {"movable", "ruled_layers", "second_derivative_error"}


def test_the_dictionary_is_strict_json_and_the_table_shows_all() -> None:
    found = ns.measure_fast(WIDER.risk(), WIDER.theta, batch_size=8)
    back = json.loads(strict_json(found.to_dict()))
    assert back.keys() == {*found.estimates(), "dimension", "sample_count", "batch_size", "replacement"}
    text = str(found)
    for estimate in found.estimates().values():
        assert str(estimate) in text


def fitted() -> Case:
    """All gradients 0: labels that the model predicts exactly."""
    model = nn.Linear(2, 1, bias=False)
    inputs = normal(16, 2, seed=1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return Case(lambda: model, inputs, inputs @ torch.tensor([[1.0], [-2.0]], dtype=F64), loss=nn.MSELoss())


def test_where_all_gradients_vanish_there_is_no_noise() -> None:
    case = fitted()
    risk = case.risk()
    theta = torch.tensor([1.0, -2.0], dtype=F64)
    found = ns.measure_fast(risk, theta, batch_size=4)
    assert found.trace_sigma.value == found.trace_h_sigma.value == 0
    assert found.trace_h.value > 0
    assert math.isnan(found.noise_scale.value)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: (quadratic(torch.eye(2, dtype=F64), normal(9, 2)), 2), ValueError, "needs a model"),
        (lambda: (small().risk(), 2), ValueError, "makes 8 groups of samples, and there are 5; use measure"),
        (lambda: (WIDER.risk(), 0), ValueError, "batch_size must be at least 1"),
    ],
)
def test_mistakes_are_named(
    call: Callable[[], tuple[ns.EmpiricalRisk, int]], error: type[Exception], says: str
) -> None:
    risk, batch_size = call()
    with pytest.raises(error, match=says):
        ns.measure_fast(risk, risk.parameters(), batch_size=batch_size)


def small() -> Case:
    return Case(lambda: nn.Linear(2, 3), normal(5, 2), classes(5, of=3))


def test_a_loss_that_is_not_finite_is_refused(mlp: Case) -> None:
    with pytest.raises(NonFiniteLossError, match="not finite"):
        ns.measure_fast(mlp.risk(), torch.full_like(mlp.theta, math.nan), batch_size=3)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.count >= 8])
def test_every_model_gives_an_answer(name: str) -> None:
    case = CASES[name]
    found = ns.measure_fast(case.risk(), case.theta, batch_size=3)
    expected = of_case(case, 3)
    for figure in EXACT:
        assert found.estimates()[figure].value == pytest.approx(expected[figure], rel=1e-7), figure
    low, high = found.trace_h_sigma.interval(0.9999)
    assert low <= expected["trace_h_sigma"] <= high
