"""No per-sample loss, no risk: what ties samples together or is left to chance is refused as it is built."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Container, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import noisescape as ns
from coupled_models import COUPLED, SOUND
from coupled_models.subjects import F32, F64, Entry, Subject
from slowness import quick

NAMES = {F32: "float32", F64: "float64"}


LARGE = ("drop path in eval, ConvNext", "drop path of rate 0, Swin")


def rows(entries: dict[str, Entry], *, slow: Container[str] = ()) -> Callable[..., Any]:
    def cells(names: Iterable[str]) -> list[Any]:
        return [
            pytest.param(entries[name], dtype, id=f"{name}, {NAMES[dtype]}")
            for name in names
            for dtype in entries[name].dtypes
        ]

    short = [name for name in entries if name not in slow]
    return pytest.mark.parametrize(("entry", "dtype"), quick(cells(short), cells(entries)))


def build(entry: Entry, dtype: torch.dtype) -> ns.EmpiricalRisk:
    return ns.EmpiricalRisk(*entry.subject(dtype))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- the global state that models draw from


def test_there_are_many_of_each() -> None:
    assert len(COUPLED) >= 27
    assert len(SOUND) >= 10


@rows(COUPLED)
def test_a_coupled_or_random_loss_is_refused(entry: Entry, dtype: torch.dtype) -> None:
    model, loss, data = entry.subject(dtype)
    with pytest.raises(ns.BatchCouplingError):
        ns.EmpiricalRisk(model, loss, data)


@rows({name: COUPLED[name] for name in ("ranking", "class weights of the batch", "gaussian noise")})
@pytest.mark.parametrize("options", [{"chunk_size": 7}, {"memory_budget": 1}], ids=["chunks of 7", "no memory"])
def test_refusal_does_not_hang_on_how_the_data_is_cut(entry: Entry, dtype: torch.dtype, options: Any) -> None:
    model, loss, data = entry.subject(dtype)
    with pytest.raises(ns.BatchCouplingError):
        ns.EmpiricalRisk(model, loss, data, **options)


@rows(SOUND, slow=LARGE)
def test_a_sound_loss_is_accepted_and_its_gradient_is_the_mean(entry: Entry, dtype: torch.dtype) -> None:
    risk = build(entry, dtype)
    theta = risk.parameters()
    gradient = risk.gradient(theta)
    mean = risk.per_sample_gradients(theta).mean(0)
    assert (gradient - mean).norm() <= (1e-4 if dtype == F32 else 1e-9) * gradient.norm()


@rows({**COUPLED, **SOUND}, slow=LARGE)
def test_building_a_risk_draws_no_random_number(entry: Entry, dtype: torch.dtype) -> None:
    subject = entry.subject(dtype)
    before = states()
    try:
        ns.EmpiricalRisk(*subject)
    except (ValueError, RuntimeError):
        assert entry not in SOUND.values()
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    np.testing.assert_equal(before[2], after[2])


def states() -> tuple[Tensor, Any, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002


# ---------------------------------------------------------------------- the entries are what they claim to be


def losses_and_gradients(subject: Subject, samples: slice) -> list[tuple[Tensor, Tensor]]:
    """ℓ_n and g_n of the samples given, evaluated together, by plain autograd."""
    model, loss, data = subject
    inputs, targets = tree_map(lambda tensor: tensor[samples], data)
    values = loss(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets)
    trainable = [p for p in model.parameters() if p.requires_grad]
    found = []
    for value in values:
        parts = torch.autograd.grad(value, trainable, retain_graph=True, allow_unused=True)
        gradient = [torch.zeros_like(p) if part is None else part for p, part in zip(trainable, parts, strict=True)]
        found.append((value.detach(), torch.cat([part.reshape(-1) for part in gradient])))
    return found


def differ(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> float:
    """The largest relative difference of losses, or of gradients."""
    scale = max(float(gradient.norm()) for _, gradient in left)
    pairs = list(zip(left, right, strict=True))
    values = max(float((a - b).abs() / a.abs().clamp_min(1e-9)) for (a, _), (b, _) in pairs)
    gradients = max(float((a - b).norm()) / scale for (_, a), (_, b) in pairs)
    return max(values, gradients)


def compared(entry: Entry, dtype: torch.dtype, size: int) -> float:
    """Samples together against each alone; copies, as some models keep a state."""
    subject = entry.subject(dtype)
    together = losses_and_gradients(copy.deepcopy(subject), slice(0, size))
    alone = []
    for n in range(size):
        alone += losses_and_gradients(copy.deepcopy(subject), slice(n, n + 1))
    return differ(together, alone)


ENTRIES = {name: entry for name, entry in COUPLED.items() if entry.runs}


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES.values() if e.random], ids=[n for n in ENTRIES if ENTRIES[n].random]
)
def test_reference_chance_shows_when_evaluated_again(entry: Entry) -> None:
    subject = entry.subject(F64)
    assert differ(*(losses_and_gradients(subject, slice(0, 40)) for _ in range(2))) > 1e-6


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if not entry.random])
def test_reference_coupling_shows_in_the_whole_batch(name: str) -> None:
    entry = ENTRIES[name]
    assert compared(entry, entry.dtypes[-1], 40) > 1e-5
    if entry.hidden:
        assert compared(entry, entry.dtypes[-1], 2) < 1e-12


@pytest.mark.parametrize("name", quick([name for name in SOUND if name not in LARGE], SOUND))
def test_reference_sound_losses_are_those_of_each_sample_alone(name: str) -> None:
    assert compared(SOUND[name], F64, 40) < 1e-8
