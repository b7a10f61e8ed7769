"""Seeds, replicas and learning rates of a run; what a run leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import noisescape as ns
from cases import Case, bowl_risk, normal
from noisescape.simulation import recorders
from simulations import ALL, HESSIAN, NOISY, START, bowl, run


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_run_other_seed_other_run(name: str, replicas: int | None) -> None:
    def final(seed: int) -> Tensor:
        return run(bowl(), ALL[name], START, steps=5, replicas=replicas, seed=seed).theta

    first = final(3)
    assert torch.equal(first, final(3))
    assert torch.equal(first, final(4)) == (name not in NOISY)


@pytest.mark.parametrize("name", NOISY)
def test_replicas_of_one_start_part_ways(name: str) -> None:
    found = run(bowl(), ALL[name], START, steps=5, replicas=4).theta
    assert found.shape == (4, 3)
    assert len(torch.unique(found, dim=0)) == 4


@pytest.mark.parametrize("name", ALL)
def test_a_small_model_runs_in_replicas(name: str, mlp: Case) -> None:
    starts = mlp.theta + 0.1 * normal(3, len(mlp.theta), seed=9)
    watch = {"loss": recorders.loss, "accuracy": recorders.accuracy}
    found = run(mlp.risk(), ALL[name], starts, steps=3, record=watch)
    assert found.theta.shape == starts.shape
    assert torch.isfinite(found.theta).all()
    assert not found.diverged.any()
    assert found.records["loss"].values.shape == (4, 3)
    assert_close(found.records["loss"].values[0], torch.stack([mlp.losses(row).mean() for row in starts]))
    assert (found.theta != starts).any(1).all()


@pytest.mark.parametrize("kind", ["closed form", "vector of losses", "model"])
def test_replicas_of_gradient_descent_are_the_single_runs(kind: str, mlp: Case) -> None:
    if kind == "model":
        risk, starts = mlp.risk(), mlp.theta + 0.1 * normal(3, len(mlp.theta), seed=9)
    else:
        risk = bowl_risk("of a sample" if kind == "closed form" else "of all samples")
        starts = normal(3, 3, seed=9)
    together = run(risk, ns.GD(), starts, lr=0.05, steps=6)
    for row, start in enumerate(starts):
        alone = run(risk, ns.GD(), start, lr=0.05, steps=6)
        assert_close(together.theta[row], alone.theta, rtol=1e-10, atol=1e-12)
        assert_close(together.records["loss"].values[:, row], alone.records["loss"].values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lr", [0.01, 0.5, 1.3], ids=["small", "large", "ηλ near 2"])
def test_gradient_descent_on_a_quadratic_contracts_exactly(lr: float) -> None:
    values, vectors = torch.linalg.eigh(HESSIAN)
    expected = vectors @ ((1 - lr * values) ** 40 * (vectors.T @ START))
    assert_close(run(bowl(), ns.GD(), START, lr=lr, steps=40).theta, expected, rtol=1e-10, atol=1e-12)


def test_a_schedule_is_asked_at_every_step_from_zero() -> None:
    asked = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5 / (1 + step)

    values, vectors = torch.linalg.eigh(HESSIAN)
    shrunk = torch.stack([1 - 0.5 / (1 + step) * values for step in range(6)]).prod(0)
    found = run(bowl(), ns.GD(), START, lr=schedule, steps=6)
    assert asked == [*range(6)]
    assert_close(found.theta, vectors @ (shrunk * (vectors.T @ START)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("replicas", [None, 2])
def test_the_users_model_and_start_are_left_alone(mlp: Case, replicas: int | None) -> None:
    model = mlp.model().train()
    model[0].bias.grad = torch.ones_like(model[0].bias)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = mlp.theta.clone()
    risk = ns.EmpiricalRisk(model, mlp.loss, mlp.data)
    for name in ("sgd", "gld-leading", "gld-hessian"):
        run(risk, ALL[name], start, steps=2, replicas=replicas)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(model[0].bias.grad, torch.ones_like(model[0].bias))
    assert model[2].bias.grad is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(start, mlp.theta)
    assert not start.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive, not nan"),
        ({"replicas": 0}, "replicas must be at least 1, not 0"),
        ({"every": 0}, "every must be at least 1, not 0"),
        ({"every": -2}, "every must be at least 1, not -2"),
        ({"theta": START.expand(2, -1), "replicas": 2}, r"start of shape \(R, D\) already has its replicas"),
        ({"theta": START * math.inf}, "the starting θ is not finite"),
        ({"theta": START[:2]}, r"θ must have shape \(3,\)"),
        ({"theta": START.float()}, "θ is torch.float32 but the risk is torch.float64"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], message: str) -> None:
    arguments = {"theta": START, "lr": 0.1, "steps": 3} | changes
    theta = arguments.pop("theta")
    with pytest.raises(ValueError, match=message):
        ns.simulate(bowl(), ns.GD(), theta, progress=False, **arguments)
