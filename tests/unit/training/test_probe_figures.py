"""Each figure of a probe against dense derivatives in float64, written down without the package."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64, classes, normal
from noisescape.training import Probe

N = 24
X, Y = normal(N, 4, seed=1), classes(N, of=3, seed=2)


class Dropping(nn.Module):
    """Dropout and batch-norm, which a probe meets in evaluation mode."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(torch.tanh(self.norm(self.first(x))), 0.5, self.training))


def small(hidden: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = Dropping(hidden).to(F64)
    with torch.no_grad():
        model(normal(50, 4, seed=3))  # running statistics
    return model


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


class Dense:
    """θ, per-sample gradients and Hessians of single samples, all dense, in evaluation mode."""

    def __init__(self, model: nn.Module, inputs: Tensor = X, targets: Tensor = Y) -> None:
        model = copy.deepcopy(model).eval()
        named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in named.values()]
        theta = torch.cat([p.reshape(-1) for p in named.values()])

        def losses(point: Tensor) -> Tensor:
            parts = [part.view_as(p) for part, p in zip(point.split(sizes), named.values(), strict=True)]
            outputs = torch.func.functional_call(model, dict(zip(named, parts, strict=True)), (inputs,))
            return F.cross_entropy(outputs, targets, reduction="none")

        self.losses = losses(theta).detach()
        self.rows = torch.autograd.functional.jacobian(losses, theta)
        self.hessian_of: Callable[[Any], Tensor] = lambda rows: torch.autograd.functional.hessian(
            lambda point: losses(point)[rows].mean(), theta
        )
        self.hessian = self.hessian_of(slice(None))
        self.values, self.vectors = torch.linalg.eigh(self.hessian)


def rayleigh(gradient: Tensor, hessian: Tensor) -> float:
    return float(gradient @ hessian @ gradient / (gradient @ gradient))


@pytest.mark.parametrize("hidden", [5, 40])  # by dense eigenvalues, and by Lanczos
def test_figures_of_the_present_batch(hidden):
    model = small(hidden)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trained(model, optimizer)
    found = Probe(model, F.cross_entropy).measure(optimizer, batch=(X, Y))
    dense = Dense(model)
    mean = dense.rows.mean(0)
    deviations = dense.rows - mean
    trace = float(deviations.square().sum() / (N - 1))
    expected = {
        "samples": N,
        "loss": float(dense.losses.mean()),
        "trace_covariance": trace,
        "squared_gradient_norm": float(mean @ mean) - trace / N,
        "top_eigenvalue": float(dense.values[-1]),
        "stability_edge": 2 * 1.9 / 0.1,
        "top_eigenvalue_over_edge": float(dense.values[-1]) / 38,
        "batch_sharpness": rayleigh(mean, dense.hessian),
    }
    for name, value in expected.items():
        assert found[f"probe/{name}"] == pytest.approx(value, rel=1e-9 if hidden == 5 else 1e-4), name
    norm = found["probe/squared_gradient_norm"]
    assert found["probe/scale"] == (found["probe/trace_covariance"] / norm if norm > 0 else math.inf)
    assert found["probe/scale_low"] < found["probe/scale"] <= found["probe/scale_high"]
    assert "probe/batch_sharpness_stderr" not in found
    top = dense.vectors[:, -1]
    exact = float((deviations @ top).square().sum() / (N - 1) * dense.hessian.trace() / (dense.values[-1] * trace))
    # Tr H alone is estimated in it
    error = found["probe/projection_coefficient_stderr"]
    assert found["probe/projection_coefficient"] == pytest.approx(exact, abs=3 * error)
    assert error < 0.3 * exact


@pytest.mark.slow
def test_traces_are_within_their_errors_of_those_of_a_population():
    """80 probes of 16 out of 400 samples: the mean within four errors of it, and errors true."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = normal(400, 4, seed=5), classes(400, of=3, seed=6)
    targets[:200] = inputs[:200, :3].argmax(1)
    dense = Dense(model, inputs, targets)
    deviations = dense.rows - dense.rows.mean(0)
    covariance = deviations.T @ deviations / len(deviations)
    truth = {
        "trace_covariance": float(covariance.trace()),
        "squared_gradient_norm": float(dense.rows.mean(0).square().sum()),
        "hessian_noise_trace": float((dense.hessian * covariance).sum()) / 16,
        "isotropic_trace": float(dense.hessian.trace() * covariance.trace()) / len(covariance) / 16,
    }
    draw = torch.Generator().manual_seed(7)
    found = []
    probes = {seed: Probe(model, F.cross_entropy, seed=seed) for seed in range(4)}
    for number in range(80):
        chosen = torch.randint(0, 400, (16,), generator=draw)
        batch = inputs[chosen], targets[chosen]
        found.append(probes[number % 4].measure(optimizer, batch=batch, batch_size=16))
    for name, value in truth.items():
        values = torch.tensor([each[f"probe/{name}"] for each in found], dtype=F64)
        errors = torch.tensor([each[f"probe/{name}_stderr"] for each in found], dtype=F64)
        assert abs(float(values.mean()) - value) < 4 * float(values.std()) / math.sqrt(80), name
        assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.3), name


def test_adams_figures_are_in_the_metric_of_its_state():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    trained(model, optimizer)
    found = Probe(model, F.cross_entropy).measure(optimizer, batch=(X, Y))
    second = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()]) / (1 - 0.999**3)
    metric = torch.where(second > 0, 1 / (second.sqrt() + 1e-8), 0).sqrt()
    top = float(torch.linalg.eigvalsh(metric[:, None] * Dense(model).hessian * metric)[-1])
    assert found["probe/preconditioned_top_eigenvalue"] == pytest.approx(top, rel=1e-9)
    assert found["probe/preconditioned_edge"] == pytest.approx((2 - 1e-3) * 1.9 / (0.1 * 1e-2))
    assert found["probe/top_eigenvalue_over_edge"] == pytest.approx(top / found["probe/preconditioned_edge"])
    assert "probe/stability_edge" not in found


def test_groups_of_unlike_decay_have_an_edge_in_their_own_metric():
    model = small()
    groups = [
        {"params": [model.first.weight, model.last.weight], "weight_decay": 0.5},
        {"params": [model.first.bias, model.last.bias, *model.norm.parameters()], "lr": 0.05},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    found = Probe(model, F.cross_entropy).measure(optimizer, batch=(X, Y))
    rate, decay = [], []
    for name, parameter in model.named_parameters():
        weight = name in ("first.weight", "last.weight")
        rate += [1.0 if weight else 0.5] * parameter.numel()
        decay += [0.5 * weight] * parameter.numel()
    root = torch.tensor(rate, dtype=F64).sqrt()
    curved = root[:, None] * (Dense(model).hessian + torch.diag(torch.tensor(decay, dtype=F64))) * root
    assert found["probe/preconditioned_top_eigenvalue"] == pytest.approx(
        float(torch.linalg.eigvalsh(curved)[-1]), rel=1e-9
    )
    assert found["probe/preconditioned_edge"] == pytest.approx(20)


def test_batch_sharpness_is_averaged_over_minibatches_of_held_out_samples():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, F.cross_entropy, (X, Y), seed=3)
    found = probe.measure(optimizer, batch_size=7)
    dense = Dense(model)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    each = torch.tensor(
        [rayleigh(dense.rows[some].mean(0), dense.hessian_of(some)) for some in order[:21].split(7)], dtype=F64
    )
    assert found["probe/batch_sharpness"] == pytest.approx(float(each.mean()), rel=1e-9)
    assert found["probe/batch_sharpness_stderr"] == pytest.approx(float(each.std()) / math.sqrt(3), rel=1e-9)


def test_only_trainable_parameters_count_also_once_they_change():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, F.cross_entropy)
    first = probe.measure(optimizer, batch=(X, Y))["probe/top_eigenvalue"]
    model.first.requires_grad_(False)
    assert not probe.is_open((X, Y))
    found = probe.measure(optimizer, batch=(X, Y))
    assert found["probe/top_eigenvalue"] == pytest.approx(float(Dense(model).values[-1]), rel=1e-9)
    assert found["probe/top_eigenvalue"] < first


def test_fewer_samples_are_the_first_of_one_random_order():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    dense = Dense(model)
    for given in ({"batch": (X, Y)}, {}):
        probe = Probe(model, F.cross_entropy, None if given else (X, Y))
        found = probe.measure(optimizer, samples=10, batch_size=24, **given)
        assert found["probe/samples"] == 10
        assert found["probe/loss"] == pytest.approx(float(dense.losses[order[:10]].mean()), rel=1e-12)
        top = float(torch.linalg.eigvalsh(dense.hessian_of(order[:10]))[-1])
        assert found["probe/top_eigenvalue"] == pytest.approx(top, rel=1e-9)
        assert "probe/batch_sharpness" not in found  # of 24, which are not there


def test_a_second_batch_is_not_the_first():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, F.cross_entropy)
    probe.measure(optimizer, batch=(X, Y))
    trained(model, optimizer)
    other = normal(30, 4, seed=8), classes(30, of=3, seed=9)
    assert probe.is_open(other)
    found = probe.measure(optimizer, batch=other)
    assert found["probe/top_eigenvalue"] == pytest.approx(float(Dense(model, *other).values[-1]), rel=1e-9)


@pytest.mark.parametrize("form", ["pair", "dataset", "loader", "batches", "shuffled loader", "dicts"])
def test_held_out_data_may_come_in_many_forms(form):
    model: nn.Module = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stored = torch.utils.data.TensorDataset(X, Y)
    state = torch.get_rng_state()
    data: Any = {
        "pair": lambda: (X, Y),
        "dataset": lambda: stored,
        "loader": lambda: torch.utils.data.DataLoader(stored, batch_size=5),
        "batches": lambda: [(X[:10], Y[:10]), (X[10:], Y[10:])],
        "shuffled loader": lambda: torch.utils.data.DataLoader(
            stored, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1)
        ),
        "dicts": lambda: ({"x": X}, Y),
    }[form]()
    probe = Probe(model, F.cross_entropy, data)
    found = probe.measure(optimizer, batch_size=8)
    assert torch.equal(state, torch.get_rng_state())
    dense = Dense(model)
    assert found["probe/samples"] == N
    assert found["probe/loss"] == pytest.approx(float(dense.losses.mean()), rel=1e-12)
    assert found["probe/top_eigenvalue"] == pytest.approx(float(dense.values[-1]), rel=1e-9)


def test_of_much_data_a_random_part_is_kept():
    reads: list[int] = []

    class Long(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            reads.append(index)
            return normal(4, seed=index), index % 3

    probe = Probe(small(), F.cross_entropy, Long(), samples=16)
    assert len(reads) == 16 == probe.available()
    assert max(reads) > 50_000


def test_unlike_shapes_are_probed_together():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3).to(F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.mean(1))

    model = Mean()
    batches = [(normal(8, 2, 4, seed=1), classes(8, of=3)), (normal(8, 5, 4, seed=2), classes(8, of=3, seed=1))]
    found = Probe(model, F.cross_entropy, batches).measure(
        torch.optim.SGD(model.parameters(), lr=0.1), batch_size=4
    )
    losses = torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in batches])
    assert found["probe/loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-12)
    assert found["probe/trace_covariance"] > 0


def test_half_precision_is_probed_in_single_and_autocast_is_left():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = X.to(torch.bfloat16), Y
    precise = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    precise.load_state_dict(model.state_dict())
    dense = Dense(precise.double(), batch[0].double())
    probe = Probe(model, F.cross_entropy)
    for _ in range(2):  # the second by the way that is not tried
        with torch.autocast("cpu"):
            found = probe.measure(optimizer, batch=batch)
        assert found["probe/top_eigenvalue"] == pytest.approx(float(dense.values[-1]), rel=1e-4)
        assert found["probe/loss"] == pytest.approx(float(dense.losses.mean()), rel=1e-5)
