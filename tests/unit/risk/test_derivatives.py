"""Losses and their derivatives against the same written out by hand and differentiated densely."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cases import CASES, F64, POINTS, Batches, Case, bowl, bowl_gradients, bowl_hessian, close, cubed, normal
from internals import DECISIONS, decided
from noisescape.risk import EmpiricalRisk
from noisescape.risk.gradients import row_chunks
from noisescape.risk.passes import ggn_forms, ggnvp, unchecked_losses
from slowness import quick

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each_case
def test_losses_and_loss_match_the_formula(case: Case) -> None:
    risk, expected = case.risk(), case.losses(case.theta).detach()
    close(risk.losses(case.theta), expected)
    close(unchecked_losses(risk, case.theta), expected)
    close(risk.loss(case.theta), expected.mean())


@each_case
def test_gradient_matches_dense_autograd(case: Case) -> None:
    close(case.risk().gradient(case.theta), case.gradients().mean(0))


@each_case
def test_weighted_gradient_is_the_jacobian_transposed_times_weights(case: Case) -> None:
    risk, weights = case.risk(), normal(case.count, 3, seed=8)
    close(risk.vjp(case.theta, weights[:, 0]), case.gradients().T @ weights[:, 0])
    close(risk.vjp(case.theta, weights), case.gradients().T @ weights)


@each_case
def test_directional_derivatives_are_the_jacobian_times_directions(case: Case) -> None:
    risk, directions = case.risk(), normal(len(case.theta), 3, seed=8)
    close(risk.jvp(case.theta, directions[:, 0]), case.gradients() @ directions[:, 0])
    close(risk.jvp(case.theta, directions), case.gradients() @ directions)


@each_case
def test_per_sample_gradients_match_dense_autograd(case: Case) -> None:
    risk, rows = case.risk(chunk_size=4), torch.tensor([2, 0, 5, 2])
    close(risk.per_sample_gradients(case.theta), case.gradients())
    close(risk.per_sample_gradients(case.theta, rows), case.gradients()[rows])
    chunks = list(row_chunks(risk, case.theta))
    assert max(len(chunk) for chunk in chunks) <= 4
    close(torch.cat(chunks), case.gradients())


@each_case
def test_minibatch_gradient_counts_repeated_samples_repeatedly(case: Case) -> None:
    indices = torch.tensor([5, 1, 5, 3])
    expected = case.gradients()[indices].mean(0)
    close(case.risk().minibatch_gradient(case.theta, indices), expected)
    streamed = case.risk(chunk_size=2).with_data(Batches(case, [5, case.count - 5]))
    close(streamed.minibatch_gradient(case.theta, indices), expected)


@each_case
def test_hessian_product_matches_dense_autograd(case: Case) -> None:
    risk, directions = case.risk(), normal(len(case.theta), 3, seed=8)
    close(risk.hvp(case.theta, directions[:, 0]), case.hessian() @ directions[:, 0])
    close(risk.hvp(case.theta, directions), case.hessian() @ directions)


@each_case
def test_gauss_newton_product_matches_an_explicit_sum(case: Case) -> None:
    risk, directions = case.risk(), normal(len(case.theta), 3, seed=8)
    close(ggnvp(risk, case.theta, directions[:, 0]), case.gauss_newton() @ directions[:, 0])
    close(ggnvp(risk, case.theta, directions), case.gauss_newton() @ directions)


def test_closed_form_landscape_matches_its_derivatives_by_hand(bowl_risks: EmpiricalRisk) -> None:
    theta, direction, weights = normal(3, seed=1), normal(3, seed=2), normal(6, seed=3)
    rows = bowl_gradients(theta)
    close(bowl_risks.losses(theta), bowl(theta))
    close(bowl_risks.gradient(theta), rows.mean(0))
    close(bowl_risks.vjp(theta, weights), rows.T @ weights)
    close(bowl_risks.jvp(theta, direction), rows @ direction)
    close(bowl_risks.per_sample_gradients(theta), rows)
    close(bowl_risks.per_sample_gradients(theta, torch.tensor([4, 1])), rows[[4, 1]])
    close(bowl_risks.minibatch_gradient(theta, torch.tensor([0, 0, 5])), rows[[0, 0, 5]].mean(0))
    close(bowl_risks.hessian(theta).dense(), bowl_hessian(theta))


@pytest.mark.parametrize("kind", ["of all samples", "of a sample"])
@pytest.mark.parametrize("count", [2, 9], ids=["N < D", "N > D"])
def test_closed_form_without_forward_mode_falls_back_to_reverse_mode(count: int, kind: str) -> None:
    points, start = normal(count, 3, seed=5), torch.ones(3, dtype=F64)

    def loss(theta: Tensor, point: Tensor) -> Tensor:
        return cubed(theta - point).sum(-1)

    if kind == "of a sample":
        risk = EmpiricalRisk.from_sample_loss(loss, points, start)
    else:
        risk = EmpiricalRisk.from_losses(lambda theta: loss(theta, points), start)
    theta, direction = normal(3, seed=6), normal(3, seed=7)
    rows = 3 * (theta - points) ** 2
    close(risk.per_sample_gradients(theta), rows)
    close(risk.jvp(theta, direction), rows @ direction)
    close(risk.hvp(theta, direction), 6 * (theta - points).mean(0) * direction)


@pytest.mark.parametrize("name", quick(["mlp cross-entropy", "conv"], CASES))
def test_derivatives_are_the_same_where_gradients_are_off(name: str) -> None:
    """As in an evaluation loop, whichever is asked for first there."""
    case = CASES[name]
    block = normal(len(case.theta), 3, seed=3)
    asked: dict[str, Callable[[EmpiricalRisk], object]] = {
        **{name: partial(decided, name=name) for name in DECISIONS},
        "gradient": lambda risk: risk.gradient(case.theta),
        "minibatch": lambda risk: risk.minibatch_gradient(case.theta, torch.tensor([0, 2])),
        "per-sample gradients": lambda risk: risk.per_sample_gradients(case.theta),
        "noise": lambda risk: risk.noise_covariance(case.theta, 2) @ block,
        "Hessian": lambda risk: risk.hessian(case.theta) @ block[:, 0],
        "Hessian, block": lambda risk: risk.hessian(case.theta) @ block,
        "directional derivatives": lambda risk: risk.jvp(case.theta, block),
    }
    if decided(case.risk(), "gauss_newton_forms"):
        asked["Gauss-Newton"] = lambda risk: risk.gauss_newton(case.theta) @ block
        asked["its forms"] = lambda risk: ggn_forms(risk, case.theta, block)
    for ask in asked.values():
        expected = ask(case.risk())
        with torch.no_grad():
            found = ask(case.risk())
        if isinstance(expected, torch.Tensor):
            assert_close(found, expected, rtol=1e-10, atol=1e-12)
        else:
            assert found == expected


def test_sequence_losses_are_averaged_over_their_length() -> None:
    case = CASES["sequence"]
    outputs = case.outputs(case.theta, case.inputs)
    loop = torch.stack(
        [
            sum(-torch.log_softmax(outputs[n, :, t], 0)[case.targets[n, t]] for t in range(4)) / 4
            for n in range(case.count)
        ]
    )
    close(case.risk().losses(case.theta), loop.detach())


def test_a_loss_that_ignores_some_parameters_has_zero_derivatives_there() -> None:
    risk = EmpiricalRisk.from_losses(lambda w: w[0] * POINTS[:, 0], torch.zeros(2, dtype=F64))
    theta, direction = torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    close(risk.gradient(theta), torch.stack([POINTS[:, 0].mean(), torch.zeros((), dtype=F64)]))
    assert torch.equal(risk.hvp(theta, direction), torch.zeros(2, dtype=F64))
    assert torch.equal(risk.hessian(theta).dense(), torch.zeros(2, 2, dtype=F64))
