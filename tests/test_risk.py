"""The empirical risk against the same quantities written out by hand and differentiated densely."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from operator import attrgetter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cases import (
    CASES,
    F64,
    POINTS,
    Case,
    bowl,
    bowl_gradients,
    bowl_hessian,
    bowl_of_sample,
    bowl_risk,
    classes,
    cubed,
    normal,
)
from noisescape.risk import EmpiricalRisk

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    """Equal to a relative error of the largest entry."""
    scale = max(float(expected.abs().max()), 1e-3)
    assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


# ---------------------------------------------------------------------- derivatives


@each_case
def test_parameters_are_the_modules_trainable_ones_in_order(case: Case) -> None:
    model = case.model()
    expected = torch.cat([p.flatten() for _, p in model.named_parameters() if p.requires_grad])
    risk = case.risk()
    assert torch.equal(risk.parameters(), expected)
    assert (risk.dimension, risk.sample_count, risk.dtype) == (len(expected), case.count, F64)


@each_case
def test_losses_and_loss_match_the_formula(case: Case) -> None:
    risk, expected = case.risk(), case.losses(case.theta).detach()
    close(risk.losses(case.theta), expected)
    close(risk.unchecked_losses(case.theta), expected)
    close(risk.loss(case.theta), expected.mean())


@each_case
def test_gradient_matches_dense_autograd(case: Case) -> None:
    close(case.risk().gradient(case.theta), case.gradients().mean(0))


@each_case
def test_weighted_gradient_is_the_jacobian_transposed_times_weights(case: Case) -> None:
    risk, weights = case.risk(), normal(case.count, 3, seed=8)
    close(risk.weighted_gradient(case.theta, weights[:, 0]), case.gradients().T @ weights[:, 0])
    close(risk.weighted_gradient(case.theta, weights), case.gradients().T @ weights)


@each_case
def test_directional_derivatives_are_the_jacobian_times_directions(case: Case) -> None:
    risk, directions = case.risk(), normal(len(case.theta), 3, seed=8)
    close(risk.directional_derivatives(case.theta, directions[:, 0]), case.gradients() @ directions[:, 0])
    close(risk.directional_derivatives(case.theta, directions), case.gradients() @ directions)


@each_case
def test_per_sample_gradients_match_dense_autograd(case: Case) -> None:
    risk, rows = case.risk(chunk_size=4), torch.tensor([2, 0, 5, 2])
    close(risk.per_sample_gradients(case.theta), case.gradients())
    close(risk.per_sample_gradients(case.theta, rows), case.gradients()[rows])
    chunks = list(risk.per_sample_gradient_chunks(case.theta))
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
    close(risk.hessian_product(case.theta, directions[:, 0]), case.hessian() @ directions[:, 0])
    close(risk.hessian_product(case.theta, directions), case.hessian() @ directions)


@each_case
def test_gauss_newton_product_matches_an_explicit_sum(case: Case) -> None:
    risk, directions = case.risk(), normal(len(case.theta), 3, seed=8)
    close(risk.gauss_newton_product(case.theta, directions[:, 0]), case.gauss_newton() @ directions[:, 0])
    close(risk.gauss_newton_product(case.theta, directions), case.gauss_newton() @ directions)


def test_closed_form_landscape_matches_its_derivatives_by_hand(bowl_risks: EmpiricalRisk) -> None:
    theta, direction, weights = normal(3, seed=1), normal(3, seed=2), normal(6, seed=3)
    rows = bowl_gradients(theta)
    close(bowl_risks.losses(theta), bowl(theta))
    close(bowl_risks.gradient(theta), rows.mean(0))
    close(bowl_risks.weighted_gradient(theta, weights), rows.T @ weights)
    close(bowl_risks.directional_derivatives(theta, direction), rows @ direction)
    close(bowl_risks.per_sample_gradients(theta), rows)
    close(bowl_risks.per_sample_gradients(theta, torch.tensor([4, 1])), rows[[4, 1]])
    close(bowl_risks.minibatch_gradient(theta, torch.tensor([0, 0, 5])), rows[[0, 0, 5]].mean(0))
    close(bowl_risks.hessian(theta).dense(), bowl_hessian(theta))


# ---------------------------------------------------------------------- replicas

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
    "weighted gradient": lambda risk, theta, r: risk.weighted_gradient(theta, _weights(risk)[r]),
    "directional derivatives": lambda risk, theta, r: risk.directional_derivatives(theta, _directions(risk)[r]),
    "per-sample gradients": lambda risk, theta, _: risk.per_sample_gradients(theta),
    "minibatch gradient": lambda risk, theta, r: risk.minibatch_gradient(theta, _BATCHES[r]),
    "hessian product": lambda risk, theta, r: risk.hessian_product(theta, _directions(risk)[r]),
}


@pytest.mark.parametrize("quantity", PER_REPLICA)
@pytest.mark.parametrize("name", REPLICATED)
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
        risk.weighted_gradient(theta, weights),
        each(lambda one, row, r: one.weighted_gradient(row, weights[r])),
    )
    close(
        risk.minibatch_gradient(theta, indices),
        each(lambda one, row, r: one.minibatch_gradient(row, indices[r])),
    )
    close(risk.minibatch_gradient(theta, rows), each(lambda one, row, r: one.minibatch_gradient(row, rows)))
    close(risk.hessian_product(theta, theta), each(lambda one, row, r: one.hessian_product(row, row)))
    close(
        risk.directional_derivatives(theta, theta),
        each(lambda one, row, r: one.directional_derivatives(row, row)),
    )
    with pytest.raises(ValueError, match=r"4 replicas with data of their own"):
        risk.losses(theta[0])
    with pytest.raises(ValueError, match=r"4 replicas with data of their own"):
        risk.losses(theta[:2])


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
    close(risk.directional_derivatives(theta, direction), rows @ direction)
    close(risk.hessian_product(theta, direction), 6 * (theta - points).mean(0) * direction)


# ---------------------------------------------------------------------- invariance to how data is held


class Batches:
    """A re-iterable of batches of the given sizes."""

    def __init__(self, case: Case, sizes: list[int]) -> None:
        self.case, self.sizes = case, sizes

    def __iter__(self):
        start = 0
        for size in self.sizes:
            cut = slice(start, start + size)
            inputs = torch.utils._pytree.tree_map(lambda t, cut=cut: t[cut], self.case.inputs)
            yield inputs, self.case.targets[cut]
            start += size


class Pairs(Dataset):
    """A map-style data set."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.inputs[index], self.targets[index]


def _everything(risk: EmpiricalRisk, theta: Tensor) -> dict[str, Tensor]:
    """Every quantity that is a sum over the data."""
    direction = normal(risk.dimension, seed=1).to(risk.dtype)
    block = normal(risk.dimension, 2, seed=2).to(risk.dtype)
    weights = normal(risk.sample_count, 2, seed=3).to(risk.dtype)
    covariance = risk.noise_covariance(theta, 3, replacement=False)
    return {
        "losses": risk.losses(theta),
        "loss": risk.loss(theta),
        "accuracy": risk.accuracy(theta),
        "gradient": risk.gradient(theta),
        "weighted": risk.weighted_gradient(theta, weights[:, 0]),
        "weighted block": risk.weighted_gradient(theta, weights),
        "slopes": risk.directional_derivatives(theta, direction),
        "slopes block": risk.directional_derivatives(theta, block),
        "rows": torch.cat(list(risk.per_sample_gradient_chunks(theta))),
        "minibatch": risk.minibatch_gradient(theta, torch.tensor([9, 0, 9])),
        "hessian": risk.hessian_product(theta, block),
        "gauss-newton": risk.gauss_newton_product(theta, block),
        "covariance": covariance @ block,
        "covariance diagonal": covariance.diagonal(),
    }


_CE = CASES["mlp cross-entropy"]
_REFERENCE = _everything(_CE.risk(), _CE.theta)


def _split(cuts: list[int], total: int) -> list[int]:
    edges = [0, *sorted(set(cuts)), total]
    return [b - a for a, b in itertools.pairwise(edges)]


def _loader(batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(_CE.inputs, _CE.targets), batch_size=batch_size)


sources = st.one_of(
    st.just(("tensors", None)),
    st.tuples(st.just("loader"), st.integers(1, 12)),
    st.tuples(st.just("dataset"), st.none()),
    st.tuples(st.just("batches"), st.lists(st.integers(1, 10), max_size=4)),
    st.tuples(st.just("list of batches"), st.lists(st.integers(1, 10), min_size=2, max_size=4, unique=True)),
)


def _source(kind: str, how):
    if kind == "tensors":
        return _CE.data
    if kind == "loader":
        return _loader(how)
    if kind == "dataset":
        return Pairs(_CE.inputs, _CE.targets)
    batches = Batches(_CE, _split(how, _CE.count))
    return batches if kind == "batches" else list(batches)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    source=sources,
    chunk_size=st.none() | st.integers(1, 15),
    memory_budget=st.sampled_from([1, 500, 5_000, 2**30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_results_do_not_depend_on_how_the_data_is_held_or_chunked(source, chunk_size, memory_budget, dtype) -> None:
    risk = EmpiricalRisk(
        _CE.model(),
        nn.functional.cross_entropy,
        _source(*source),
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    ).to(dtype)
    found = _everything(risk, _CE.theta.to(dtype))
    tolerance = 1e-11 if dtype == F64 else 2e-5
    for name, expected in _REFERENCE.items():
        scale = float(expected.abs().max())
        assert_close(
            found[name].to(F64),
            expected,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("memory_budget", [1, 2**30], ids=["streamed", "kept"])
def test_batches_of_unequal_size_are_weighted_by_their_size(memory_budget: int) -> None:
    case = Case(lambda: nn.Linear(2, 3), normal(10, 2, seed=1), classes(10, of=3, seed=2))
    risk = EmpiricalRisk(case.model(), case.loss, Batches(case, [8, 2]), memory_budget=memory_budget)
    close(risk.gradient(case.theta), case.gradients().mean(0))
    close(risk.hessian(case.theta).dense(), case.hessian())
    close(risk.noise_covariance(case.theta, 4).dense(), case.covariance() / 4)


@pytest.mark.parametrize("sizes", [[8, 2], [5, 5]], ids=str)
def test_a_list_of_two_batches_is_a_list_of_batches(sizes: list[int]) -> None:
    """Two (inputs, targets) pairs look like a pair of pairs."""
    case = Case(lambda: nn.Linear(2, 3), normal(10, 2, seed=1), classes(10, of=3, seed=2))
    risk = EmpiricalRisk(case.model(), case.loss, list(Batches(case, sizes)))
    close(risk.losses(case.theta), case.losses(case.theta).detach())


def test_a_list_of_samples_is_a_data_set() -> None:
    case = Case(lambda: nn.Linear(2, 3), normal(5, 2, seed=1), classes(5, of=3, seed=2))
    risk = EmpiricalRisk(case.model(), case.loss, [(x, int(y)) for x, y in zip(*case.data, strict=True)])
    close(risk.losses(case.theta), case.losses(case.theta).detach())


def test_a_loader_over_an_iterable_data_set_is_streamed_in_its_order() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(*_CE.data, strict=True))

    risk = EmpiricalRisk(_CE.model(), _CE.loss, DataLoader(Stream(), batch_size=4), memory_budget=1)
    close(risk.losses(_CE.theta), _REFERENCE["losses"])


def test_chunks_shrink_with_the_memory_budget(conv: Case) -> None:
    one_sample = 2 * conv.risk().bytes_per_sample
    sizes = [conv.risk(memory_budget=budget).chunk_size() for budget in (1, 4 * one_sample, 2**30)]
    assert sizes == [1, 4, conv.count]
    assert conv.risk(memory_budget=4 * one_sample).chunk_size(passes=4) == 2
    assert conv.risk(chunk_size=5, memory_budget=1).chunk_size() == 5


DECISIONS = ("bytes_per_sample", "forward_mode", "pushes_gradients", "gradient_width")


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_the_same_where_gradients_are_off(name: str) -> None:
    """As in an evaluation loop, whichever is asked for first there."""
    case = CASES[name]
    block = normal(len(case.theta), 3, seed=3)
    asked: dict[str, Callable[[EmpiricalRisk], object]] = {
        **{name: attrgetter(name) for name in DECISIONS},
        "gradient": lambda risk: risk.gradient(case.theta),
        "minibatch": lambda risk: risk.minibatch_gradient(case.theta, torch.tensor([0, 2])),
        "per-sample gradients": lambda risk: risk.per_sample_gradients(case.theta),
        "noise": lambda risk: risk.noise_covariance(case.theta, 2) @ block,
        "Hessian": lambda risk: risk.hessian(case.theta) @ block[:, 0],
        "Hessian, block": lambda risk: risk.hessian(case.theta) @ block,
        "directional derivatives": lambda risk: risk.directional_derivatives(case.theta, block),
    }
    if case.risk().pushes_outputs:
        asked["Gauss-Newton"] = lambda risk: risk.gauss_newton(case.theta) @ block
        asked["its forms"] = lambda risk: risk.gauss_newton_forms(case.theta, block)
    for ask in asked.values():
        expected = ask(case.risk())
        with torch.no_grad():
            found = ask(case.risk())
        if isinstance(expected, torch.Tensor):
            assert_close(found, expected, rtol=1e-10, atol=1e-12)
        else:
            assert found == expected


def test_chunks_on_a_cpu_stay_within_its_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = CASES["conv"]
    risk = conv.risk()
    monkeypatch.setattr("noisescape.risk.per_sample_losses.CPU_WORKING_SET", 6 * risk.bytes_per_sample)
    monkeypatch.setattr("noisescape.risk.per_sample_losses.PARAMETER_SHARE", 0)
    assert [risk.chunk_size(columns=columns) for columns in (1, 2, 3, 100)] == [6, 3, 2, 1]
    monkeypatch.setattr("noisescape.risk.per_sample_losses.PARAMETER_SHARE", 1000)
    assert risk.chunk_size(columns=100) == conv.count
    monkeypatch.setattr("noisescape.risk.per_sample_losses.PARAMETER_SHARE", 0)
    block = normal(risk.dimension, 20, seed=1)
    close(risk.hessian_product(conv.theta, block), conv.hessian() @ block)
    close(risk.gradient_derivatives(conv.theta, block), conv.hessian() @ block)
    close(risk.weighted_gradient(conv.theta, normal(conv.count, 20)), conv.gradients().T @ normal(conv.count, 20))


def test_streamed_batches_larger_than_a_chunk_are_cut(mlp: Case) -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    model = Watched(3, 3).to(F64)
    risk = EmpiricalRisk(model, mlp.loss, Batches(mlp, [8, 3]), memory_budget=1, chunk_size=5)
    seen.clear()
    risk.losses(risk.parameters())
    assert seen == [5, 3, 3]


# ---------------------------------------------------------------------- parameters


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
        risk.directional_derivatives(theta, mlp.theta),
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


# ---------------------------------------------------------------------- which way derivatives go


@pytest.mark.parametrize(("name", "expected"), [("mlp cross-entropy", True), ("no forward mode", False)])
def test_forward_mode_is_used_where_it_exists(name: str, expected: bool) -> None:
    assert CASES[name].risk().forward_mode is expected


def test_a_forward_derivative_that_disagrees_with_reverse_mode_is_not_trusted() -> None:
    class Lying(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x**2

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, upstream: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * upstream

        @staticmethod
        def jvp(ctx, tangent: Tensor) -> Tensor:
            return 3 * ctx.saved_tensors[0] * tangent

    risk = EmpiricalRisk.from_losses(lambda w: Lying.apply(w), torch.ones(2, dtype=F64))
    assert not risk.forward_mode
    theta = torch.tensor([1.0, -2.0], dtype=F64)
    close(risk.directional_derivatives(theta, torch.ones(2, dtype=F64)), 2 * theta)


@pytest.mark.parametrize("name", ["lstm", "attention", "conv"])
def test_single_precision_agrees_with_double(name: str) -> None:
    case = CASES[name]
    risk, theta = case.risk(torch.float32), case.theta.float()
    direction = normal(len(theta), seed=3)
    close(risk.gradient(theta).double(), case.gradients().mean(0), rtol=2e-5)
    close(risk.per_sample_gradients(theta).double(), case.gradients(), rtol=2e-5)
    close(risk.hessian_product(theta, direction.float()).double(), case.hessian() @ direction, rtol=1e-4)


# ---------------------------------------------------------------------- losses of other shapes, metrics


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


def test_accuracy_and_metrics_are_means_over_samples(mlp: Case) -> None:
    risk = mlp.risk(chunk_size=4)
    outputs = mlp.outputs(mlp.theta, mlp.inputs).detach()
    right = sum(int(outputs[n].argmax()) == int(mlp.targets[n]) for n in range(mlp.count))
    assert 0 < right < mlp.count
    assert float(risk.accuracy(mlp.theta)) == pytest.approx(right / mlp.count)
    margin = risk.metric(mlp.theta, lambda outputs, _: outputs[:, 0] - outputs[:, 1])
    close(margin, (outputs[:, 0] - outputs[:, 1]).mean())


def test_accuracy_of_sequences_is_per_token() -> None:
    case = CASES["sequence"]
    predicted = case.outputs(case.theta, case.inputs).argmax(1)
    expected = (predicted == case.targets).double().mean()
    assert float(case.risk(chunk_size=2).accuracy(case.theta)) == pytest.approx(float(expected))


def test_with_data_keeps_model_and_loss(mlp: Case) -> None:
    other = Case(mlp.build, normal(5, 3, seed=31), classes(5, of=3, seed=32))
    risk = mlp.risk(chunk_size=2)
    moved = risk.with_data(other.data)
    assert (moved.sample_count, risk.sample_count) == (5, 11)
    close(moved.losses(mlp.theta), other.losses(mlp.theta).detach())
    assert torch.equal(moved.parameters(), risk.parameters())


@pytest.mark.parametrize("name", CASES)
def test_to_double_equals_a_risk_built_in_double(name: str) -> None:
    case = CASES[name]
    single = case.risk(torch.float32)
    risk = single.to(F64)
    assert risk.dtype == F64
    assert single.dtype == torch.float32
    theta = risk.parameters()
    assert torch.equal(theta, single.parameters().double())
    # the data were rounded to single precision: compare with a risk that was, too
    rounded = torch.utils._pytree.tree_map(lambda t: t.float().double() if t.is_floating_point() else t, case.data)
    double = EmpiricalRisk(case.model(torch.float32).double(), case.loss, rounded)
    close(risk.gradient(theta), double.gradient(theta))


def test_to_double_converts_class_weights_of_the_loss(mlp: Case) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5])
    data = (mlp.inputs.float(), mlp.targets)
    risk = EmpiricalRisk(mlp.model(torch.float32), nn.CrossEntropyLoss(weight=weight), data).to(F64)
    weights = weight[mlp.targets].double()
    close(risk.losses(mlp.theta), mlp.losses(mlp.theta).detach() * weights / weights.mean(), rtol=1e-6)


def test_replicas_that_diverged_pass_through_as_non_finite() -> None:
    risk = bowl_risk()
    theta = torch.stack([torch.zeros(3, dtype=F64), torch.full((3,), 1e200, dtype=F64)])
    assert risk.loss(theta).isfinite().tolist() == [True, False]


def test_a_loss_that_ignores_some_parameters_has_zero_derivatives_there() -> None:
    risk = EmpiricalRisk.from_losses(lambda w: w[0] * POINTS[:, 0], torch.zeros(2, dtype=F64))
    theta, direction = torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    close(risk.gradient(theta), torch.stack([POINTS[:, 0].mean(), torch.zeros((), dtype=F64)]))
    assert torch.equal(risk.hessian_product(theta, direction), torch.zeros(2, dtype=F64))
    assert torch.equal(risk.hessian(theta).dense(), torch.zeros(2, 2, dtype=F64))
