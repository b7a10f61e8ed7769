"""The module is the caller's: after every call it is, object for object and bit for bit, what it was before."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch

import noisescape as ns
from cases import normal
from risk_calls import CALLS, INERT, OF_TENSOR_OUTPUTS, logits_of
from slowness import quick
from snapshots import Snapshot
from whole_modules import QUICK, SUBJECTS

pytestmark = pytest.mark.filterwarnings("ignore:parameters have gradient hooks")  # hooks are warned of, and kept


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Used:
    """A module after every call there is: what each call did to it, which calls raised, whether it still learns."""

    def __init__(self, name: str) -> None:
        self.damage: dict[str, list[str]] = {}
        self.raised: dict[str, str] = {}
        model, loss, data = SUBJECTS[name]()
        self.model, self.loss, self.data = model, loss, data
        self.snapshot = Snapshot(model)
        self._try("construction", lambda: setattr(self, "risk", ns.EmpiricalRisk(model, loss, data)))
        if "construction" in self.raised:
            return
        risk, theta = self.risk, self.risk.parameters()
        block = normal(len(theta), 3, seed=8)
        tensor_outputs = name != "lora by peft"
        for call, make in {**CALLS, **(OF_TENSOR_OUTPUTS if tensor_outputs else {})}.items():
            self._try(call, functools.partial(make, risk, theta, block))

    def _try(self, call: str, make: Callable[[], object]) -> None:
        try:
            make()
        except Exception as error:
            self.raised[call] = f"{type(error).__name__}: {str(error)[:120]}"
        damage = self.snapshot.damage()[:6]
        if damage and damage not in self.damage.values():
            self.damage[call] = damage  # only what this call did anew


@functools.cache
def used(name: str) -> Used:
    return Used(name)


@pytest.mark.parametrize("name", quick(QUICK, SUBJECTS))
def test_every_call_leaves_the_module_as_it_was(name: str) -> None:
    assert used(name).damage == {}


@pytest.mark.parametrize("name", quick(QUICK, SUBJECTS))
def test_every_call_returns(name: str) -> None:
    """Otherwise the test above would hold for nothing. The one exception needs forward mode over reverse."""
    assert used(name).raised.keys() - {"hvp_by_forward_mode"} == set(), used(name).raised


@pytest.mark.parametrize("name", quick(QUICK, SUBJECTS))
def test_training_goes_on(name: str) -> None:
    subject = used(name)
    model, (inputs, targets) = subject.model, subject.data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    outputs = model(inputs)
    subject.loss(outputs, targets).mean().backward()
    optimizer.step()
    trainable = [(p, was) for p, was in zip(model.parameters(), before, strict=True) if p.requires_grad]
    assert all(p.grad is not None for p, _ in trainable)
    for p, was in trainable:
        torch.testing.assert_close(p.detach(), was - 0.1 * p.grad, rtol=1e-12, atol=1e-14)
    assert sum(bool((p.grad != 0).any()) for p, _ in trainable) >= 2
    with torch.no_grad():
        again = model(inputs)
    assert not torch.equal(logits_of(outputs), logits_of(again))


def test_every_public_call_is_made() -> None:
    public = {name for name, _ in inspect.getmembers(ns.EmpiricalRisk) if not name.startswith("_")}
    made = {call.split(",")[0] for call in {**CALLS, **OF_TENSOR_OUTPUTS}}
    assert public - made - INERT == set()
