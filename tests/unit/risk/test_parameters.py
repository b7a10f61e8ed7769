"""θ and the module's parameters: which, in which order, and never changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import noisescape as ns
from cases import CASES, F64, Case, close, normal
from noisescape.risk import EmpiricalRisk

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each_case
def test_parameters_are_the_modules_trainable_ones_in_order(case: Case) -> None:
    model = case.model()
    expected = torch.cat([p.flatten() for _, p in model.named_parameters() if p.requires_grad])
    risk = case.risk()
    assert torch.equal(risk.parameters(), expected)
    assert (risk.dimension, risk.sample_count, risk.dtype) == (len(expected), case.count, F64)


def test_frozen_parameters_are_left_out_and_keep_their_values() -> None:
    case = CASES["frozen layer"]
    risk = case.risk()
    assert risk.dimension == 4 * 3 + 3
    assert set(risk.state_dict(case.theta)) == {"2.weight", "2.bias"}


def test_shared_parameters_are_counted_once() -> None:
    case = CASES["tied weights"]
    risk = case.risk()
    assert risk.dimension == 4 * 4 + 4
    model = case.model()
    model.load_state_dict(risk.state_dict(case.theta), strict=False)
    close(EmpiricalRisk(model, case.loss, case.data).parameters(), case.theta)
    assert model.encoder.weight is model.decoder.weight


def test_state_dict_round_trips_and_shares_no_memory(mlp: Case) -> None:
    risk, model = mlp.risk(), mlp.model()
    theta = mlp.theta.clone()
    state = risk.state_dict(theta)
    model.load_state_dict(state, strict=True)
    assert torch.equal(torch.cat([p.flatten() for p in model.parameters()]), theta)
    state["0.weight"].zero_()
    assert torch.equal(theta, mlp.theta)


def test_parameters_follow_the_module_as_it_trains(mlp: Case) -> None:
    model = mlp.model()
    risk = EmpiricalRisk(model, mlp.loss, mlp.data)
    before = risk.parameters()
    with torch.no_grad():
        model[0].bias.add_(1.0)
    moved = risk.parameters() - before
    assert int((moved == 1).sum()) == 4
    assert int((moved == 0).sum()) == len(before) - 4


def _use_everything(risk: EmpiricalRisk, theta: Tensor) -> None:
    block = normal(risk.dimension, 2, seed=1)
    risk.loss(theta)
    risk.accuracy(theta)
    risk.gradient(theta)
    risk.losses(theta.repeat(2, 1))
    risk.gradient(theta.repeat(2, 1))
    risk.per_sample_gradients(theta)
    risk.minibatch_gradient(theta, torch.tensor([0, 1]))
    for operator in (
        risk.hessian(theta),
        risk.gauss_newton(theta),
        risk.fisher(theta),
        risk.noise_covariance(theta, 2),
    ):
        operator @ block
    risk.to(torch.float32).gradient(theta.float())


class _Counter(nn.Module):
    """Writes to a buffer and would write to the module's own, were it called directly."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("name", ["batch norm in eval", "frozen layer", "conv", "tied weights", "attention"])
def test_the_users_module_is_never_mutated(name: str) -> None:
    case = CASES[name]
    model = nn.Sequential(case.model(), _Counter().to(F64) if name != "tied weights" else nn.Identity())
    model.train(name == "conv")
    first = next(p for p in model.parameters() if p.requires_grad)
    first.grad = torch.full_like(first, 7.0)
    before = copy.deepcopy(model)
    identities = {key: id(tensor) for key, tensor in [*model.named_parameters(), *model.named_buffers()]}
    risk = EmpiricalRisk(model, case.loss, case.data)
    if name == "tied weights":
        risk = EmpiricalRisk(model, nn.MSELoss(), case.data)
        theta = risk.parameters() + 0.1
        risk.gradient(theta)
        risk.hessian(theta) @ theta
        risk.per_sample_gradients(theta)
    else:
        _use_everything(risk, risk.parameters() + 0.1)
    assert identities == {key: id(t) for key, t in [*model.named_parameters(), *model.named_buffers()]}
    for (key, now), (_, then) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(now, then), key
        assert now.requires_grad == then.requires_grad, key
        if now is first:
            assert torch.equal(now.grad, torch.full_like(now, 7.0)), key
        else:
            assert now.grad is None, key
    for (key, now), (_, then) in zip(model.named_buffers(), before.named_buffers(), strict=True):
        assert torch.equal(now, then), key
    flags = [module.training for module in model.modules()]
    assert flags == [module.training for module in before.modules()]


def test_theta_gathers_no_graph_and_no_gradient(mlp: Case) -> None:
    risk, theta = mlp.risk(), mlp.theta.clone().requires_grad_()
    for result in (
        risk.losses(theta),
        risk.gradient(theta),
        risk.per_sample_gradients(theta),
        risk.jvp(theta, mlp.theta),
        risk.hessian(theta) @ mlp.theta,
        risk.gauss_newton(theta) @ mlp.theta,
        risk.noise_covariance(theta, 2) @ mlp.theta,
    ):
        assert not result.requires_grad
    assert theta.grad is None
    assert theta.requires_grad


def test_a_module_switched_to_training_later_does_not_change_the_risk() -> None:
    case = CASES["batch norm in eval"]
    model = case.model()
    risk = EmpiricalRisk(model, case.loss, case.data)
    model.train()
    try:
        found = risk.losses(case.theta)
    except ValueError:  # refusing is as good
        return
    close(found, case.losses(case.theta).detach())


def test_a_risk_follows_its_module_through_further_training() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).eval()
    data = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
    risk = ns.EmpiricalRisk(model, torch.nn.functional.cross_entropy, data)
    model.train()
    for _ in range(5):
        model(3 + 2 * data[0])  # moves the running statistics
    model.eval()
    wanted = torch.nn.functional.cross_entropy(model(data[0]), data[1])
    torch.testing.assert_close(risk.loss(risk.parameters()), wanted.detach())
