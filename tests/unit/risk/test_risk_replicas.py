"""Many θ at once: each is evaluated as if alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import CASES, F64, Case, bowl_of_sample, bowl_risk, close, normal
from noisescape.risk import EmpiricalRisk
from slowness import quick

REPLICATED = {
    "mlp cross-entropy": CASES["mlp cross-entropy"],
    "conv": CASES["conv"],
    "tied weights": CASES["tied weights"],
    "attention": CASES["attention"],
    "lstm": CASES["lstm"],
    "no forward mode": CASES["no forward mode"],
    "losses as one vector": bowl_risk("of all samples"),
    "loss of a sample": bowl_risk("of a sample"),
}


def _replicated(name: str) -> tuple[EmpiricalRisk, Tensor]:
    source = REPLICATED[name]
    risk = source.risk(chunk_size=4) if isinstance(source, Case) else source
    return risk, risk.parameters() + 0.3 * normal(3, risk.dimension, seed=9)


def _weights(risk: EmpiricalRisk) -> Tensor:
    return normal(3, risk.sample_count, seed=10)


def _directions(risk: EmpiricalRisk) -> Tensor:
    return normal(3, risk.dimension, seed=12)


_BATCHES = torch.tensor([[0, 1, 1], [5, 3, 0], [2, 2, 2]])
PER_REPLICA = {
    "losses": lambda risk, theta, _: risk.losses(theta),
    "loss": lambda risk, theta, _: risk.loss(theta),
    "gradient": lambda risk, theta, _: risk.gradient(theta),
    "weighted gradient": lambda risk, theta, r: risk.vjp(theta, _weights(risk)[r]),
    "directional derivatives": lambda risk, theta, r: risk.jvp(theta, _directions(risk)[r]),
    "per-sample gradients": lambda risk, theta, _: risk.per_sample_gradients(theta),
    "minibatch gradient": lambda risk, theta, r: risk.minibatch_gradient(theta, _BATCHES[r]),
    "hessian product": lambda risk, theta, r: risk.hvp(theta, _directions(risk)[r]),
}


@pytest.mark.parametrize("quantity", PER_REPLICA)
@pytest.mark.parametrize("name", quick([*REPLICATED][::2], REPLICATED))
def test_each_replica_is_evaluated_as_if_alone(name: str, quantity: str) -> None:
    risk, theta = _replicated(name)
    compute = PER_REPLICA[quantity]
    together = compute(risk, theta, slice(None))
    alone = torch.stack([compute(risk, row, r) for r, row in enumerate(theta)])
    close(together, alone, rtol=1e-11)


def test_one_minibatch_is_shared_by_all_replicas_if_indices_are_flat(mlp: Case) -> None:
    risk, indices = mlp.risk(), torch.tensor([1, 4])
    theta = mlp.theta + 0.1 * normal(2, len(mlp.theta), seed=1)
    expected = torch.stack([risk.minibatch_gradient(row, indices) for row in theta])
    close(risk.minibatch_gradient(theta, indices), expected)


def test_metrics_of_replicas_are_those_of_each(mlp: Case) -> None:
    risk, theta = mlp.risk(), mlp.theta + normal(4, len(mlp.theta), seed=1)
    assert torch.equal(risk.accuracy(theta), torch.stack([risk.accuracy(row) for row in theta]))


def test_replicas_of_a_closed_form_may_have_data_of_their_own() -> None:
    points = normal(4, 6, 3, seed=5)
    risk = EmpiricalRisk.from_sample_loss(bowl_of_sample, points, torch.zeros(3, dtype=F64))
    theta, indices = normal(4, 3, seed=6), torch.tensor([[0, 1], [2, 2], [5, 4], [3, 0]])
    weights = normal(4, 6, seed=7)
    alone = [EmpiricalRisk.from_sample_loss(bowl_of_sample, p, torch.zeros(3, dtype=F64)) for p in points]

    def each(compute) -> Tensor:
        return torch.stack([compute(one, row, r) for r, (one, row) in enumerate(zip(alone, theta, strict=True))])

    close(risk.losses(theta), each(lambda one, row, r: one.losses(row)))
    close(risk.gradient(theta), each(lambda one, row, r: one.gradient(row)))
    close(risk.per_sample_gradients(theta), each(lambda one, row, r: one.per_sample_gradients(row)))
    rows = torch.tensor([5, 0])
    close(risk.per_sample_gradients(theta, rows), risk.per_sample_gradients(theta)[:, rows])
    close(
        risk.vjp(theta, weights),
        each(lambda one, row, r: one.vjp(row, weights[r])),
    )
    close(
        risk.minibatch_gradient(theta, indices),
        each(lambda one, row, r: one.minibatch_gradient(row, indices[r])),
    )
    close(risk.minibatch_gradient(theta, rows), each(lambda one, row, r: one.minibatch_gradient(row, rows)))
    close(risk.hvp(theta, theta), each(lambda one, row, r: one.hvp(row, row)))
    close(
        risk.jvp(theta, theta),
        each(lambda one, row, r: one.jvp(row, row)),
    )
    with pytest.raises(ValueError, match=r"4 replicas with data of their own"):
        risk.losses(theta[0])
    with pytest.raises(ValueError, match=r"4 replicas with data of their own"):
        risk.losses(theta[:2])


def test_replicas_that_diverged_pass_through_as_non_finite() -> None:
    risk = bowl_risk()
    theta = torch.stack([torch.zeros(3, dtype=F64), torch.full((3,), 1e200, dtype=F64)])
    assert risk.loss(theta).isfinite().tolist() == [True, False]
