"""A loss that has changed, or remembers what it saw, is refused; one that only lives on is not touched."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from cases import F64
from criteria import CE, CLASSES, WEIGHT, C, Focal, Shaped, Wrapping, X, plain_gradient
from noisescape.errors import BatchCouplingError
from noisescape.risk import EmpiricalRisk


def weighted() -> CE:
    return CE(weight=WEIGHT.clone())


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "weight replaced": (weighted, lambda loss: setattr(loss, "weight", 2 * WEIGHT), "weight"),
    "weight given": (CE, lambda loss: setattr(loss, "weight", WEIGHT), "weight"),
    "weight changed in place": (weighted, lambda loss: loss.weight.mul_(2), "weight"),
    "weight changed past autograd": (weighted, lambda loss: loss.weight.data.mul_(2), "weight"),
    "smoothing": (CE, lambda loss: setattr(loss, "label_smoothing", 0.1), "label_smoothing"),
    "ignored index": (CE, lambda loss: setattr(loss, "ignore_index", 1), "ignore_index"),
    "reduction": (CE, lambda loss: setattr(loss, "reduction", "sum"), "reduction"),
    "inside": (Wrapping, lambda loss: loss.inner.weight.mul_(2), r"inner\.weight"),
    "an attribute added": (Focal, lambda loss: setattr(loss, "gamma", 3.0), "gamma"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_loss_that_has_changed_is_refused(name: str) -> None:
    make, change, named = CHANGES[name]
    loss = make()
    risk = EmpiricalRisk(Shaped(C), loss, (X, CLASSES))
    theta = risk.parameters()
    risk.loss(theta)
    change(loss)
    for use in (risk.loss, risk.gradient, risk.per_sample_gradients):
        with pytest.raises(ValueError, match=rf"the loss has changed .*\({named}\).*build the risk anew"):
            use(theta)


class Scaled:
    """A loss that is a plain object, and counts its calls."""

    def __init__(self) -> None:
        self.calls, self.scale = 0, 2.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets, reduction="none") * self.scale


def test_a_loss_that_is_a_plain_object_is_watched_too() -> None:
    loss = Scaled()
    risk = EmpiricalRisk(Shaped(C), loss, (X, CLASSES))
    theta = risk.parameters()
    before = risk.loss(theta)
    risk.hessian(theta) @ theta
    assert_close(risk.loss(theta), before)
    loss.scale = 3.0
    with pytest.raises(ValueError, match=r"the loss has changed .*\(scale\)"):
        risk.loss(theta)


class Counting(CE):
    """Counts its calls, keeps a history and a running mean in a buffer and in a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.history = 0, [0.0]
        self.register_buffer("mean", torch.zeros((), dtype=F64))
        self.seen = torch.zeros((), dtype=F64)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = super().forward(input, target)
        self.calls += 1
        self.history.append(float(self.calls))
        self.mean.mul_(0.9).add_(0.1 * target.double().mean())
        self.seen += 1
        return values


def test_a_loss_that_lives_on_is_neither_refused_nor_touched() -> None:
    loss, model = Counting(), Shaped(C)
    risk = EmpiricalRisk(model, loss, (X, CLASSES))
    theta = risk.parameters()
    before = risk.loss(theta)
    assert (loss.calls, loss.history, float(loss.mean), float(loss.seen)) == (0, [0.0], 0.0, 0.0)
    loss(model(X), CLASSES)  # training goes on
    kept = (loss.calls, list(loss.history), float(loss.mean), float(loss.seen))
    assert_close(risk.loss(theta), before)
    assert_close(risk.gradient(theta), plain_gradient(model, F.cross_entropy(model(X), CLASSES)))
    risk.hessian(theta) @ theta
    assert (loss.calls, loss.history, float(loss.mean), float(loss.seen)) == kept
    loss.label_smoothing = 0.1
    with pytest.raises(ValueError, match=r"\(label_smoothing\)"):
        risk.loss(theta)


class Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.steps += 1
        return F.cross_entropy(outputs, targets, reduction="none") / (1 + self.steps)


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(C, dtype=F64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.centre.mul_(0.9).add_(0.1 * outputs.detach().mean(0))
        return F.cross_entropy(outputs - self.centre, targets, reduction="none")


class AnnealedObject(Scaled):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().__call__(outputs, targets) / self.calls


@pytest.mark.parametrize(("loss", "named"), [(Annealed, "steps"), (Centred, "centre"), (AnnealedObject, "calls")])
def test_a_loss_that_remembers_is_refused(loss: Callable[[], Any], named: str) -> None:
    with pytest.raises(BatchCouplingError, match=rf"the loss remembers what it saw \({named}\)"):
        EmpiricalRisk(Shaped(C), loss(), (X, CLASSES))


def test_a_copy_is_not_taken_for_a_change() -> None:
    weight = WEIGHT.clone()
    weight.mul_(2)  # which counts in a tensor's version, of which a copy knows nothing
    risk = EmpiricalRisk(nn.Linear(3, C).to(F64), CE(weight=weight), (X, CLASSES))
    theta = risk.parameters()
    for again in (pickle.loads(pickle.dumps(risk)), copy.deepcopy(risk)):
        assert_close(again.loss(theta), risk.loss(theta))


class Decayed(nn.Module):
    """Cross-entropy, and a penalty on the model that it holds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.reduction = model, "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        penalty = sum(p.square().sum() for p in self.model.parameters())
        return F.cross_entropy(outputs, targets, reduction=self.reduction) + 0.1 * penalty


def test_in_another_precision_the_loss_still_reads_theta() -> None:
    model = Shaped(C).float()
    risk = EmpiricalRisk(model, Decayed(model), (X.float(), CLASSES)).to(F64)
    theta = risk.parameters() + 0.1
    leaf = theta.clone().requires_grad_()
    weight, bias = leaf[: 3 * C].view(C, 3), leaf[3 * C :]
    value = F.cross_entropy(X.float().double() @ weight.T + bias, CLASSES) + 0.1 * leaf.square().sum()
    assert_close(risk.loss(theta), value.detach())
    assert_close(risk.gradient(theta), torch.autograd.grad(value, leaf)[0])
