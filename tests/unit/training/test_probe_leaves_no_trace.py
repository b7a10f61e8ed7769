"""A probe changes nothing: the module, its mode, gradients and hooks, generators, and the training that goes on."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64, classes, normal
from noisescape.risk.trees import map_tensors
from noisescape.training import Monitor, Probe, ProbeWarning
from slowness import quick
from snapshots import Snapshot
from whole_modules import QUICK, SUBJECTS

X, Y = normal(16, 4, seed=1), classes(16, of=3, seed=2)
pytestmark = pytest.mark.filterwarnings("ignore:parameters have gradient hooks")


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def generators() -> list[Any]:
    return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002


@pytest.mark.parametrize("name", quick(QUICK, SUBJECTS))
def test_modules_of_all_kinds_are_what_they_were(name):
    model, loss, data = SUBJECTS[name]()
    data = map_tensors(lambda tensor: torch.cat([tensor, tensor]), data)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before, drawn = Snapshot(model), generators()
    found = Probe(model, loss, samples=8).measure(optimizer, batch=data)
    assert found["probe/trace_covariance"] >= 0
    assert before.damage() == []
    assert generators() == drawn


class Training(nn.Module):
    """In training mode it drops, counts and takes batch statistics; it may also raise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Tanh()).eval()  # its own mode is not the model's
        self.raises = False

    def forward(self, x: Tensor) -> Tensor:
        if self.raises and not self.training:
            raise RuntimeError("not now")
        return self.last(self.inner(F.dropout(self.norm(self.first(x)), 0.3, self.training)))

    def eval(self) -> nn.Module:
        raise AssertionError("a model's own eval() may do more than to set a flag")


def subject() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Training().to(F64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    F.cross_entropy(model(X), Y).backward()  # gradients that are there already
    return model, optimizer


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, probe: Callable[[], Any] | None = None
) -> list[Tensor]:
    torch.manual_seed(4)
    for _ in range(4):
        F.cross_entropy(model(X), Y).backward()
        if probe is not None:
            probe()
        optimizer.step()
        optimizer.zero_grad()
    return [tensor.clone() for tensor in [*model.state_dict().values(), torch.get_rng_state(), torch.rand(3)]]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_training_that_is_probed_has_the_same_bits(held_out):
    plain = steps(*subject())
    model, optimizer = subject()
    probe = Probe(model, F.cross_entropy, (X, Y) if held_out else None)
    modes = [module.training for module in model.modules()]
    found = []

    def measure() -> None:
        found.append(probe.measure(optimizer, batch=(X, Y)))
        assert [module.training for module in model.modules()] == modes

    probed = steps(model, optimizer, measure)
    assert all(torch.equal(one, other) for one, other in zip(plain, probed, strict=True))
    assert all(each["probe/top_eigenvalue"] > 0 for each in found)


def test_so_it_is_after_an_error():
    model, optimizer = subject()
    probe = Probe(model, F.cross_entropy)
    assert probe.measure(optimizer, batch=(X, Y))
    model.raises = True
    before, drawn = Snapshot(model), generators()
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.warns(ProbeWarning, match="not now"):
        assert probe.measure(optimizer, batch=(X, Y)) == {}
    assert before.damage() == []
    assert generators() == drawn
    assert str(state) == str(optimizer.state_dict())


def test_hooks_on_parameters_do_not_fire():
    model, optimizer = subject()
    calls: list[int] = []
    probe = Probe(model, F.cross_entropy)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: calls.append(1))
        parameter.register_post_accumulate_grad_hook(lambda parameter: calls.append(2))
    assert probe.measure(optimizer, batch=(X, Y))["probe/samples"] == 16
    assert calls == []


@pytest.mark.parametrize("wrap", [torch.compile, nn.parallel.DistributedDataParallel])
def test_wrappers_are_taken_off(wrap):
    model, optimizer = subject()
    expected = Probe(model, F.cross_entropy).measure(optimizer, batch=(X, Y))
    found = Probe(wrap(model), F.cross_entropy).measure(optimizer, batch=(X, Y))
    for each in (expected, found):
        each.pop("probe/seconds")
    assert found == expected


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_surrounding_mode_does_not_matter(context):
    model, optimizer = subject()
    expected = Probe(model, F.cross_entropy).measure(optimizer, batch=(X, Y))
    with context():
        found = Probe(model, F.cross_entropy).measure(optimizer, batch=(X, Y))
        assert not torch.is_grad_enabled()
    assert found["probe/top_eigenvalue"] == expected["probe/top_eigenvalue"]


@pytest.mark.parametrize("pieces", quick([4], [1]))
def test_a_monitor_that_listens_hears_nothing_of_it(pieces):
    """In the midst of a step, after its first piece, and between steps."""
    reports = []
    for probed in (False, True):
        model, optimizer = subject()
        optimizer.zero_grad()
        probe = Probe(model, F.cross_entropy)
        monitor = Monitor(model, optimizer, every=6, measure_every=1)
        torch.manual_seed(5)
        for _ in range(6):
            for some in range(pieces):
                F.cross_entropy(model(X), Y).backward()
                if probed and some == 0:
                    assert probe.measure(optimizer, batch=(X, Y))
            optimizer.step()
            if probed:
                assert probe.measure(optimizer, batch=(X, Y))
            optimizer.zero_grad()
        reports.append(monitor.step())
    assert reports[0] == reports[1]
    assert reports[0]["noise/skipped_steps"] == 0
