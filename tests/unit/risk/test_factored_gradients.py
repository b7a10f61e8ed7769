"""Per-sample gradients kept as factors, against the rows they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cases import CASES, F64, Case, classes, normal
from noisescape.linops.gram import leading_pairs, leading_pairs_of, sketched_pairs
from noisescape.risk import EmpiricalRisk
from noisescape.risk.factored_gradients import FactoredGradients, OuterGradients
from noisescape.risk.gradient_covariance import gradient_moments
from noisescape.risk.gradients import factored_chunks, factored_gradients, per_sample_square_norms


def wide() -> Case:
    """A convolution before two linear layers, one of them narrowing, one widening, one without a bias."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 4, bias=False),
            nn.Tanh(),
            nn.Linear(4, 9),
            nn.Tanh(),
            nn.Linear(9, 3),
        )

    return Case(build, normal(140, 1, 6, 6, seed=1), classes(140, of=3, seed=2))


@pytest.fixture(scope="module")
def pair() -> tuple[FactoredGradients, torch.Tensor]:
    case = wide()
    return factored_gradients(case.risk(), case.theta), case.gradients()


def test_linear_layers_are_kept_as_factors(pair: tuple[FactoredGradients, torch.Tensor]) -> None:
    gradients, rows = pair
    assert [layer.inputs.shape[1] for layer in gradients.layers] == [32, 4, 9]
    assert [layer.bias is None for layer in gradients.layers] == [True, False, False]
    assert gradients.direct.shape == (140, 2 * 9 + 2)
    assert gradients.shape == rows.shape
    assert_close(gradients.rows(), rows, rtol=1e-10, atol=1e-13)


def test_products_norms_and_inner_products(pair: tuple[FactoredGradients, torch.Tensor]) -> None:
    gradients, rows = pair
    number, size = rows.shape
    for columns in (0, 1, 5):
        block, weights = normal(size, columns, seed=3), normal(number, columns, seed=4)
        assert_close(gradients @ block, rows @ block, rtol=1e-10, atol=1e-12)
        assert_close(gradients.weighted(weights), rows.T @ weights, rtol=1e-10, atol=1e-12)
    assert_close(gradients.mean(), rows.mean(0), rtol=1e-10, atol=1e-13)
    assert_close(gradients.square_mean(), rows.square().mean(0), rtol=1e-10, atol=1e-13)
    assert_close(gradients.square_norms(), rows.square().sum(1), rtol=1e-10, atol=1e-13)
    assert_close(gradients.gram(), rows @ rows.T, rtol=1e-10, atol=1e-12)


def test_wide_products_are_cut_into_columns(
    pair: tuple[FactoredGradients, torch.Tensor], narrow_products: Callable[[int], None]
) -> None:
    gradients, rows = pair
    narrow_products(140 * 9 * 8 * 2)
    block, weights = normal(rows.shape[1], 7, seed=3), normal(len(rows), 7, seed=4)
    assert_close(gradients @ block, rows @ block, rtol=1e-10, atol=1e-12)
    assert_close(gradients.weighted(weights), rows.T @ weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
def test_moments_and_leading_pairs(pair: tuple[FactoredGradients, torch.Tensor], centred: bool) -> None:
    gradients, rows = pair
    mean = rows.mean(0) if centred else torch.zeros_like(rows[0])
    found, squares = gradients.moments(centred=centred)
    assert_close(found, mean, rtol=1e-10, atol=1e-13)
    assert_close(squares, (rows - mean).square().mean(0), rtol=1e-10, atol=1e-13)
    wanted = leading_pairs(rows - mean, 6)
    values, vectors, total = leading_pairs_of(gradients, 6, centred=centred)
    assert_close(values, wanted[0], rtol=1e-8, atol=1e-12)
    assert_close((vectors.T @ wanted[1]).abs(), torch.eye(6, dtype=F64), rtol=0, atol=1e-6)
    assert total == pytest.approx(float((rows - mean).square().sum()))
    values, vectors = sketched_pairs(gradients, 6, centred=centred)
    assert_close(values, wanted[0], rtol=1e-2, atol=0)
    assert_close(vectors.T @ vectors, torch.eye(6, dtype=F64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("budget", [None, 40_000])
def test_a_risk_gives_the_same_in_chunks(budget: int | None) -> None:
    case = wide()
    risk, rows = case.risk(memory_budget=budget), case.gradients()
    assert len(list(factored_chunks(risk, case.theta))) == (1 if budget is None else 12)
    assert_close(risk.per_sample_gradients(case.theta), rows, rtol=1e-10, atol=1e-13)
    assert_close(per_sample_square_norms(risk, case.theta), rows.square().sum(1), rtol=1e-10, atol=1e-13)
    mean, variances = gradient_moments(risk, case.theta)
    assert_close(mean, rows.mean(0), rtol=1e-10, atol=1e-13)
    assert_close(variances, rows.var(0, correction=0), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", list(CASES))
def test_every_model_has_gradients_of_this_kind(name: str) -> None:
    case = CASES[name]
    gradients = factored_gradients(case.risk(), case.theta)
    assert_close(gradients.rows(), case.gradients(), rtol=1e-8, atol=1e-11)
    none_apart = {"tied weights", "lstm", "sequence", "no forward mode"}  # or no vmap
    assert bool(gradients.layers) == (name not in none_apart)


class Reused(nn.Module):
    """A layer called twice, one called on several rows a sample, and two that are called once."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.of_rows = nn.Linear(4, 4), nn.Linear(4, 4)
        self.read, self.once = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = self.of_rows(torch.stack([x, -2 * x], 1)).cos().mean(1)
        return self.once(torch.tanh(self.read(x)))


class ReadElsewhere(Reused):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.read.weight.square().sum()


def test_layers_that_are_no_outer_product_are_not_factored() -> None:
    case = Case(Reused, normal(11, 4, seed=1), classes(11, of=3, seed=2))
    gradients = factored_gradients(case.risk(), case.theta)
    assert [layer.deltas.shape[1] for layer in gradients.layers] == [4, 3]
    assert_close(gradients.rows(), case.gradients(), rtol=1e-10, atol=1e-13)


def test_a_weight_read_outside_its_layer_is_noticed() -> None:
    case = Case(ReadElsewhere, normal(11, 4, seed=1), classes(11, of=3, seed=2))
    case = Case(lambda: nn.Sequential(ReadElsewhere(), nn.Linear(3, 3)), case.inputs, case.targets)
    gradients = factored_gradients(case.risk(), case.theta)
    assert_close(gradients.rows(), case.gradients(), rtol=1e-10, atol=1e-13)


def test_no_hook_stays_on_the_module() -> None:
    case = wide()
    model = case.model()
    before = [dict(module._forward_hooks) for module in model.modules()]
    risk = EmpiricalRisk(model, case.loss, (case.inputs, case.targets))
    factored_gradients(risk, case.theta)
    assert [dict(module._forward_hooks) for module in model.modules()] == before


def test_a_small_variance_beside_a_large_mean_is_never_negative() -> None:
    inputs = torch.full((50, 3), 1.1)
    layer = OuterGradients(0, None, inputs, torch.full((50, 2), 0.7))
    mean, variances = FactoredGradients([6], inputs[:, :0], [layer]).moments()
    assert_close(mean, torch.full((6,), 0.77))
    assert bool((variances >= 0).all())
    assert float(variances.max()) < 1e-5
