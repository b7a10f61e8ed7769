"""The risk is the criterion itself on all data, by plain autograd in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from cases import Case, close, normal
from criteria import CE, LOG, SHARES, TIGHT, TOKENS, TRAINED, WEIGHT, C, N, Shaped, T, X, cut, plain_gradient
from internals import is_streamed
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradients import row_chunks
from slowness import quick


@pytest.mark.parametrize("held", quick(["streamed"], ["held"]))
@pytest.mark.parametrize("name", TRAINED)
def test_the_risk_is_the_criterion_on_all_data(name: str, held: str) -> None:
    case = TRAINED[name]
    model = case.model()
    pairs = [(X[:4], cut(case.targets, 0, 4)), (X[4:], cut(case.targets, 4, N))]
    risk = (
        EmpiricalRisk(model, case.criterion, (X, case.targets))
        if held == "held"
        else EmpiricalRisk(model, case.criterion, pairs, memory_budget=TIGHT)
    )
    assert is_streamed(risk) is (held == "streamed")
    theta = risk.parameters()
    value = case.criterion(model(X), case.targets) / case.scale
    gradient = plain_gradient(model, value)
    assert_close(risk.loss(theta), value.detach())
    assert_close(risk.losses(theta).mean(), value.detach())
    assert_close(risk.gradient(theta), gradient)
    rows = torch.cat(list(row_chunks(risk, theta)))
    assert_close(rows.mean(0), gradient)
    indices = torch.tensor([0, N - 1, 0, 3])
    assert_close(risk.minibatch_gradient(theta, indices), rows[indices].mean(0))
    direction = normal(len(theta), seed=11)
    centred = rows - rows.mean(0)
    expected = centred.T @ (centred @ direction) / N / 3
    assert_close(risk.noise_covariance(theta, 3) @ direction, expected)


@pytest.mark.parametrize("name", TRAINED)
def test_other_data_has_a_normalisation_of_its_own(name: str) -> None:
    case = TRAINED[name]
    model = case.model()
    few, targets = X[3:8], cut(case.targets, 3, 8)
    risk = EmpiricalRisk(model, case.criterion, (X, case.targets)).with_data((few, targets))
    value = case.criterion(model(few), targets) / (5 if case.scale != 1 else 1)
    assert_close(risk.loss(risk.parameters()), value.detach())


@pytest.mark.parametrize("name", ["an index of one's own", "class weights and smoothing", "pixels"])
def test_curvature_is_that_of_the_criterion(name: str) -> None:
    case = TRAINED[name]
    model = case.model()
    risk = EmpiricalRisk(model, case.criterion, (X, case.targets))
    theta, direction = risk.parameters(), normal(risk.dimension, seed=12)
    parts = torch.autograd.grad(case.criterion(model(X), case.targets), [*model.parameters()], create_graph=True)
    gradient = torch.cat([part.reshape(-1) for part in parts])
    expected = plain_gradient(model, gradient @ direction)
    assert_close(risk.hessian(theta) @ direction, expected)
    assert_close(risk.gauss_newton(theta) @ direction, expected)  # the model is linear


@pytest.mark.parametrize("reduction", ["none", None])
def test_a_loss_without_a_reduction_is_averaged_over_a_samples_values(reduction: str | None) -> None:
    model = Shaped(C, T)
    bare = functools.partial(F.cross_entropy, weight=WEIGHT, reduction="none")
    loss = CE(weight=WEIGHT, reduction="none") if reduction else lambda out, y: bare(out, y)
    risk = EmpiricalRisk(model, loss, (X, TOKENS))
    assert_close(risk.losses(risk.parameters()), bare(model(X), TOKENS).detach().mean(1))


def test_pytorchs_own_opinion_of_a_reduction_is_not_passed_on() -> None:
    model = Shaped(C, then=LOG)
    risk = EmpiricalRisk(model, nn.KLDivLoss(reduction="mean"), (X, SHARES))
    expected = F.kl_div(model(X), SHARES, reduction="none").mean()
    assert_close(risk.loss(risk.parameters()), expected.detach())


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.functional.cross_entropy,
        lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none"),
    ],
    ids=["module", "function", "already unreduced"],
)
def test_any_reduction_of_a_loss_is_undone(mlp: Case, loss) -> None:
    risk = EmpiricalRisk(mlp.model(), loss, mlp.data)
    close(risk.losses(mlp.theta), mlp.losses(mlp.theta).detach())
    if isinstance(loss, nn.Module):
        assert loss.reduction == "sum"
