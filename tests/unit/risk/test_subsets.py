"""A risk taken to other samples is the risk that would be built of them, without the trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import F64, Tagger, classes, close, normal
from noisescape.errors import InvalidValueError
from noisescape.risk import EmpiricalRisk
from noisescape.risk.subsets import on_samples_alike, restricted


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(F64)


def tagger() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().to(F64)


def tags(count: int, seed: int) -> tuple[Tensor, Tensor]:
    targets = classes(count, 7, of=4, seed=seed)
    targets[:, 4:][classes(count, 3, of=2, seed=seed + 9) == 1] = -100
    return classes(count, 7, of=5, seed=seed), targets


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[int, int], tuple[Tensor, Tensor]]]] = {
    "classes": (mlp, F.cross_entropy, lambda n, seed: (normal(n, 4, seed=seed), classes(n, of=3, seed=seed))),
    "ignored tokens": (tagger, nn.CrossEntropyLoss(), tags),
}


def figures(risk: EmpiricalRisk) -> list[Tensor]:
    theta = risk.parameters()
    block = normal(len(theta), 3, seed=8)
    return [
        risk.losses(theta),
        risk.gradient(theta),
        risk.per_sample_gradients(theta),
        risk.hvp(theta, block[:, 0]),
        risk.hessian(theta) @ block,
        risk.noise_covariance(theta, 2) @ block,
        risk.jvp(theta, block),
    ]


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("count", [3, 20, 90])
def test_other_samples_of_the_same_form_give_what_a_new_risk_gives(name, count):
    build, loss, data = SUBJECTS[name]
    model = build()
    known = EmpiricalRisk(model, loss, data(20, 1))
    found = on_samples_alike(known, *data(count, 2))
    assert found is not None
    for one, other in zip(figures(found), figures(EmpiricalRisk(model, loss, data(count, 2))), strict=True):
        close(one, other)


@pytest.mark.parametrize("name", SUBJECTS)
def test_some_samples_have_the_losses_they_have_among_all(name):
    build, loss, data = SUBJECTS[name]
    whole = EmpiricalRisk(build(), loss, data(20, 1))
    theta, chosen = whole.parameters(), torch.tensor([3, 11, 4, 3])
    some = restricted(whole, chosen)
    close(some.losses(theta), whole.losses(theta)[chosen])
    close(some.gradient(theta), whole.per_sample_gradients(theta)[chosen].mean(0))
    assert some.sample_count == 4


def test_samples_of_unlike_shapes_can_be_taken_from_a_stream():
    batches = [(normal(6, 4, seed=1), classes(6, of=3)), (normal(6, 2, 4, seed=2), classes(6, of=3))]

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if x.ndim == 2 else x.mean(1))

    whole = EmpiricalRisk(Mean(), F.cross_entropy, batches)
    theta, chosen = whole.parameters(), torch.tensor([1, 7, 10, 2])
    some = restricted(whole, chosen)
    close(some.losses(theta).sort().values, whole.losses(theta)[chosen].sort().values)
    close(some.gradient(theta), whole.per_sample_gradients(theta, chosen).mean(0))
    assert on_samples_alike(whole, *batches[0]) is None


@pytest.mark.parametrize(
    "other",
    [
        (normal(9, 5), classes(9, of=3)),
        (normal(9, 4).float(), classes(9, of=3)),
        (normal(9, 4), normal(9, 3)),
        ((normal(9, 4), None), classes(9, of=3)),
    ],
)
def test_samples_of_another_form_are_none(other):
    known = EmpiricalRisk(mlp(), F.cross_entropy, (normal(20, 4), classes(20, of=3)))
    assert on_samples_alike(known, *other) is None


def test_what_was_found_out_is_shared_and_nothing_is_tried_anew():
    model = mlp()
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    known = EmpiricalRisk(model, F.cross_entropy, (normal(20, 4), classes(20, of=3)))
    theta = known.parameters()
    known.hessian(theta) @ normal(len(theta), 2)
    calls.clear()
    found = on_samples_alike(known, normal(9, 4, seed=3), classes(9, of=3, seed=3))
    assert calls == []
    found.gradient(theta)
    assert len(calls) == 1
    restricted(found, torch.arange(4)).gradient(theta)
    assert len(calls) == 2


def test_data_that_cannot_be_used_is_refused_still():
    known = EmpiricalRisk(mlp(), F.cross_entropy, (normal(20, 4), classes(20, of=3)))
    with pytest.raises(InvalidValueError, match="disagree"):
        on_samples_alike(known, normal(9, 4), classes(8, of=3))
    with pytest.raises(InvalidValueError, match="empty"):
        on_samples_alike(known, normal(0, 4), classes(0, of=3))
