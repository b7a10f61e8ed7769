"""What a loss makes of a sample's values: the criterion itself on all data, by plain autograd in float64."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from cases import F64, classes, normal
from noisescape.errors import BatchCouplingError
from noisescape.measurement.memory import Ledger
from noisescape.risk import EmpiricalRisk
from noisescape.risk.criterion import NormalisationWarning
from noisescape.risk.samples import StreamedSamples, TensorSamples

N, C, T = 9, 4, 5
TIGHT = 400
"""Bytes in which the data are not held."""
X = normal(N, 3, seed=1)
WEIGHT = torch.tensor([0.3, 1.7, 0.9, 0.4], dtype=F64)
CLASSES = classes(N, of=C, seed=2)
TOKENS = classes(N, T, of=C, seed=3)
PIXELS = classes(N, 2, 3, of=C, seed=4)
SHARES = normal(N, C, seed=5).softmax(1)
BITS = (normal(N, C, seed=6) > 0).to(F64)
NUMBERS = normal(N, C, seed=7)


def ignoring(targets: Tensor, index: int = -100) -> Tensor:
    """Two fifths of them ignored, of one sample all, of another none."""
    hidden = torch.rand(targets.shape, generator=torch.Generator().manual_seed(8)) < 0.4
    hidden[2], hidden[3] = True, False
    return torch.where(hidden, index, targets)


class Shaped(nn.Module):
    """A linear map to outputs of a shape, and what comes after it."""

    def __init__(self, *shape: int, then: Callable[[Tensor], Any] = lambda out: out) -> None:
        super().__init__()
        self.linear, self.shape, self.then = nn.Linear(3, torch.Size(shape).numel()), shape, then
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=20 + number) / 2)
        self.to(F64)

    def forward(self, x: Tensor) -> Any:
        return self.then(self.linear(x).view(-1, *self.shape))


class Focal(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = F.cross_entropy(input, target, reduction="none")
        values = (1 - (-values).exp()) ** 2 * values
        return values if self.reduction == "none" else values.mean()


class Named(nn.CrossEntropyLoss):
    """A subclass that computes what its base does."""


class Wrapping(nn.Module):
    """Hands its reduction on to the criterion inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=WEIGHT.clone(), reduction="none")
        self.reduction = "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values = self.inner(outputs, targets)
        return values if self.reduction == "none" else values.mean()


class Delegating(nn.Module):
    """Its reduction is that of the criterion inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss()

    @property
    def reduction(self) -> str:
        return self.inner.reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        self.inner.reduction = value

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.inner(outputs, targets)


def gaussian(outputs: tuple[Tensor, Tensor], targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.gaussian_nll_loss(outputs[0], targets, outputs[1], reduction=reduction)


def connectionist(outputs: Tensor, targets: dict[str, Tensor], reduction: str = "sum") -> Tensor:
    return F.ctc_loss(outputs.transpose(0, 1), targets["labels"], targets["of"], targets["to"], reduction=reduction)


def two_heads(out: Tensor) -> tuple[Tensor, Tensor]:
    return out[:, :2], out[:, 2:].exp()


@dataclass(frozen=True)
class Trained:
    """A model, the criterion that it is trained by and targets; ``scale``: N where the criterion is a sum."""

    model: Callable[[], nn.Module]
    criterion: Any
    targets: Any
    scale: float = 1.0


CE = nn.CrossEntropyLoss
LOG = functools.partial(F.log_softmax, dim=1)
TRAINED: dict[str, Trained] = {
    "cross-entropy": Trained(lambda: Shaped(C), CE(), CLASSES),
    "cross-entropy, function": Trained(lambda: Shaped(C, T), F.cross_entropy, ignoring(TOKENS)),
    "class weights": Trained(lambda: Shaped(C), CE(weight=WEIGHT), CLASSES),
    "class weights and smoothing": Trained(lambda: Shaped(C), CE(weight=WEIGHT, label_smoothing=0.2), CLASSES),
    "ignored classes": Trained(lambda: Shaped(C), CE(ignore_index=1), CLASSES),
    "ignored tokens": Trained(lambda: Shaped(C, T), CE(), ignoring(TOKENS)),
    "smoothed tokens": Trained(lambda: Shaped(C, T), CE(label_smoothing=0.3), ignoring(TOKENS)),
    "an index of one's own": Trained(
        lambda: Shaped(C, T), CE(weight=WEIGHT, ignore_index=0, label_smoothing=0.1), ignoring(TOKENS, 0)
    ),
    "an index past the classes": Trained(lambda: Shaped(C, T), CE(WEIGHT, ignore_index=255), ignoring(TOKENS, 255)),
    "pixels": Trained(lambda: Shaped(C, 2, 3), CE(weight=WEIGHT), ignoring(PIXELS)),
    "partial": Trained(
        lambda: Shaped(C, T), functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=0), ignoring(TOKENS, 0)
    ),
    "partial of a sum": Trained(
        lambda: Shaped(C, T), functools.partial(F.cross_entropy, reduction="sum"), ignoring(TOKENS), N
    ),
    "log-likelihood": Trained(lambda: Shaped(C, T, then=LOG), nn.NLLLoss(weight=WEIGHT), ignoring(TOKENS)),
    "log-likelihood, function": Trained(lambda: Shaped(C, then=LOG), F.nll_loss, CLASSES),
    "probabilities of classes": Trained(lambda: Shaped(C), CE(weight=WEIGHT, label_smoothing=0.1), SHARES),
    "a sum": Trained(lambda: Shaped(C, T), CE(weight=WEIGHT, reduction="sum"), ignoring(TOKENS), N),
    "a subclass that only names it": Trained(lambda: Shaped(C, T), Named(WEIGHT, ignore_index=0), TOKENS),
    "focal": Trained(lambda: Shaped(C), Focal(), CLASSES),
    "wrapping": Trained(lambda: Shaped(C), Wrapping(), CLASSES),
    "delegating": Trained(lambda: Shaped(C), Delegating(), CLASSES),
    "divergence": Trained(lambda: Shaped(C, then=LOG), nn.KLDivLoss(reduction="batchmean"), SHARES),
    "binary with weights": Trained(
        lambda: Shaped(C), nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=2 * WEIGHT), BITS
    ),
    "binary of probabilities": Trained(lambda: Shaped(C, then=torch.sigmoid), nn.BCELoss(weight=WEIGHT), BITS),
    "squares": Trained(lambda: Shaped(C), nn.MSELoss(), NUMBERS),
    "sum of squares": Trained(lambda: Shaped(C), nn.MSELoss(reduction="sum"), NUMBERS, N),
    "Huber": Trained(lambda: Shaped(C), nn.HuberLoss(delta=0.7), NUMBERS),
    "Poisson": Trained(lambda: Shaped(C), nn.PoissonNLLLoss(), BITS),
    "several labels": Trained(lambda: Shaped(C), nn.MultiLabelSoftMarginLoss(weight=WEIGHT), BITS),
    "Gaussian with its variance": Trained(lambda: Shaped(C, then=two_heads), gaussian, NUMBERS[:, :2]),
    "connectionist temporal": Trained(
        lambda: Shaped(6, C, then=functools.partial(F.log_softmax, dim=-1)),
        connectionist,
        {
            "labels": classes(N, 3, of=C - 1, seed=9) + 1,
            "of": torch.full((N,), 6),
            "to": classes(N, of=3, seed=10) + 1,
        },
        N,
    ),
}


def cut(tree: Any, *bounds: int) -> Any:
    if isinstance(tree, dict):
        return {name: cut(value, *bounds) for name, value in tree.items()}
    return tree[slice(*bounds)]


def plain_gradient(model: nn.Module, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, [*model.parameters()], materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found])


@pytest.mark.parametrize("held", ["held", "streamed"])
@pytest.mark.parametrize("name", TRAINED)
def test_the_risk_is_the_criterion_on_all_data(name: str, held: str) -> None:
    case = TRAINED[name]
    model = case.model()
    pairs = [(X[:4], cut(case.targets, 0, 4)), (X[4:], cut(case.targets, 4, N))]
    risk = (
        EmpiricalRisk(model, case.criterion, (X, case.targets))
        if held == "held"
        else EmpiricalRisk(model, case.criterion, pairs, memory_budget=TIGHT)
    )
    assert isinstance(risk._samples, TensorSamples if held == "held" else StreamedSamples)
    theta = risk.parameters()
    value = case.criterion(model(X), case.targets) / case.scale
    gradient = plain_gradient(model, value)
    assert_close(risk.loss(theta), value.detach())
    assert_close(risk.losses(theta).mean(), value.detach())
    assert_close(risk.gradient(theta), gradient)
    rows = torch.cat(list(risk.per_sample_gradient_chunks(theta)))
    assert_close(rows.mean(0), gradient)
    indices = torch.tensor([0, N - 1, 0, 3])
    assert_close(risk.minibatch_gradient(theta, indices), rows[indices].mean(0))
    direction = normal(len(theta), seed=11)
    centred = rows - rows.mean(0)
    expected = centred.T @ (centred @ direction) / N / 3
    assert_close(risk.noise_covariance(theta, 3) @ direction, expected)


@pytest.mark.parametrize("name", TRAINED)
def test_other_data_has_a_normalisation_of_its_own(name: str) -> None:
    case = TRAINED[name]
    model = case.model()
    few, targets = X[3:8], cut(case.targets, 3, 8)
    risk = EmpiricalRisk(model, case.criterion, (X, case.targets)).with_data((few, targets))
    value = case.criterion(model(few), targets) / (5 if case.scale != 1 else 1)
    assert_close(risk.loss(risk.parameters()), value.detach())


@pytest.mark.parametrize("name", ["an index of one's own", "class weights and smoothing", "pixels"])
def test_curvature_is_that_of_the_criterion(name: str) -> None:
    case = TRAINED[name]
    model = case.model()
    risk = EmpiricalRisk(model, case.criterion, (X, case.targets))
    theta, direction = risk.parameters(), normal(risk.dimension, seed=12)
    slopes = torch.autograd.grad(case.criterion(model(X), case.targets), [*model.parameters()], create_graph=True)
    slope = torch.cat([part.reshape(-1) for part in slopes])
    expected = plain_gradient(model, slope @ direction)
    assert_close(risk.hessian(theta) @ direction, expected)
    assert_close(risk.gauss_newton(theta) @ direction, expected)  # the model is linear


@pytest.mark.parametrize("reduction", ["none", None])
def test_a_loss_without_a_reduction_is_averaged_over_a_samples_values(reduction: str | None) -> None:
    model = Shaped(C, T)
    bare = functools.partial(F.cross_entropy, weight=WEIGHT, reduction="none")
    loss = CE(weight=WEIGHT, reduction="none") if reduction else lambda out, y: bare(out, y)
    risk = EmpiricalRisk(model, loss, (X, TOKENS))
    assert_close(risk.losses(risk.parameters()), bare(model(X), TOKENS).detach().mean(1))


def test_ignored_targets_in_a_mean_of_ones_own_are_told() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    with pytest.warns(NormalisationWarning, match=r"targets tried are ignored, yet each counts as a loss of 0"):
        EmpiricalRisk(Shaped(C, T), loss, (X, ignoring(TOKENS)))


# ---------------------------------------------------------------------- each sample by itself


@pytest.mark.parametrize("name", ["ignored tokens", "an index of one's own", "pixels", "class weights", "partial"])
def test_a_sample_may_be_normalised_by_itself(name: str) -> None:
    case = TRAINED[name]
    model = case.model()
    with pytest.warns(NormalisationWarning, match=r'normalisation="criterion" measures what is trained'):
        risk = EmpiricalRisk(model, case.criterion, (X, case.targets), normalisation="sample")
    theta = risk.parameters()
    alone = [case.criterion(model(X[n : n + 1]), case.targets[n : n + 1]) for n in range(N)]
    kept = [value if bool(value.isfinite()) else 0 * model(X).sum() for value in alone]  # nothing of it counts
    assert_close(risk.losses(theta), torch.stack(kept).detach())
    assert_close(risk.gradient(theta), plain_gradient(model, sum(kept) / N))


def test_where_both_normalisations_are_one_nothing_is_said() -> None:
    model = Shaped(C, T)
    one = EmpiricalRisk(model, CE(), (X, TOKENS), normalisation="sample")
    other = EmpiricalRisk(model, CE(), (X, TOKENS))
    assert_close(one.losses(one.parameters()), other.losses(one.parameters()))


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r'normalisation must be "criterion" or "sample", not \'batch\''):
        EmpiricalRisk(Shaped(C), CE(), (X, CLASSES), normalisation="batch")  # type: ignore[arg-type]


def test_a_criterion_that_counts_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no target counts: all are ignored"):
        EmpiricalRisk(Shaped(C, T), CE(), (X, torch.full_like(TOKENS, -100)))


class OverValid(Focal):
    """Divides by what it likes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = super().forward(input, target)
        return values if self.reduction == "none" else values.sum() / (target != -100).sum()


def test_a_mean_that_is_not_known_is_told() -> None:
    with pytest.warns(NormalisationWarning, match=r"normalised as you train \(OverValid does not\)"):
        risk = EmpiricalRisk(Shaped(C, T), OverValid(reduction="mean"), (X, ignoring(TOKENS)))
    assert risk.sample_count == N


def test_pytorchs_own_opinion_of_a_reduction_is_not_passed_on() -> None:
    model = Shaped(C, then=LOG)
    risk = EmpiricalRisk(model, nn.KLDivLoss(reduction="mean"), (X, SHARES))
    expected = F.kl_div(model(X), SHARES, reduction="none").mean()
    assert_close(risk.loss(risk.parameters()), expected.detach())


# ---------------------------------------------------------------------- a loss that changes, and one that does not


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


# ---------------------------------------------------------------------- accuracy and metrics


def binary(*, labels: bool = False) -> tuple[nn.Module, Tensor]:
    """A model of one output and the targets that it predicts, of which none is near its threshold."""
    model = Shaped(1)
    with torch.no_grad():
        return model, (model(X) > 0).to(F64)


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(),
        F.binary_cross_entropy_with_logits,
        functools.partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor([3.0], dtype=F64)),
    ],
)
def test_one_output_for_binary_cross_entropy_is_a_class(loss: Any) -> None:
    model, targets = binary()
    risk = EmpiricalRisk(model, loss, (X, targets))
    assert float(risk.accuracy(risk.parameters())) == 1.0
    targets[0] = 1 - targets[0]
    risk = EmpiricalRisk(model, loss, (X, targets))
    assert float(risk.accuracy(risk.parameters())) == pytest.approx((N - 1) / N)


def test_probabilities_are_cut_at_one_half() -> None:
    model, targets = binary()
    risk = EmpiricalRisk(nn.Sequential(model, nn.Sigmoid()), nn.BCELoss(), (X, targets))
    assert float(risk.accuracy(risk.parameters())) == 1.0


def test_of_several_labels_each_counts() -> None:
    model = Shaped(C)
    risk = EmpiricalRisk(model, nn.BCEWithLogitsLoss(), (X, BITS))
    expected = ((model(X) > 0) == (BITS > 0)).double().mean()
    assert float(risk.accuracy(risk.parameters())) == pytest.approx(float(expected))


def test_one_hot_targets_are_classes() -> None:
    model = Shaped(C)
    risk = EmpiricalRisk(model, CE(), (X, F.one_hot(CLASSES, C).to(F64)))
    assert_close(risk.accuracy(risk.parameters()), (model(X).argmax(1) == CLASSES).double().mean())


@pytest.mark.parametrize("held", ["held", "streamed"])
def test_ignored_tokens_do_not_count(held: str) -> None:
    model, targets = Shaped(C, T), ignoring(TOKENS, 0)
    data = (X, targets) if held == "held" else [(X[:2], targets[:2]), (X[2:], targets[2:])]
    risk = EmpiricalRisk(model, CE(ignore_index=0), data, memory_budget=2**30 if held == "held" else TIGHT)
    right = (model(X).argmax(1) == targets)[targets != 0]
    assert_close(risk.accuracy(risk.parameters()), right.double().mean())


NOT_COMPARABLE: dict[str, tuple[nn.Module, Any, Any]] = {
    "one output, classes": (
        Shaped(1),
        lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.to(F64), reduction="none"),
        BITS[:, 0].long(),
    ),
    "one output, an unknown loss": (
        Shaped(1),
        lambda out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none"),
        BITS[:, :1],
    ),
    "regression": (Shaped(C), nn.MSELoss(), NUMBERS),
    "several tensors of targets": (
        Shaped(C),
        lambda out, y: F.cross_entropy(out, y["class"], reduction="none"),
        {"class": CLASSES},
    ),
    "classes last, as many as tokens": (
        Shaped(4, 4),
        lambda out, y: F.cross_entropy(out.transpose(1, 2), y, reduction="none"),
        TOKENS[:, :4],
    ),
}


@pytest.mark.parametrize("name", NOT_COMPARABLE)
def test_accuracy_is_refused_where_it_would_be_a_guess(name: str) -> None:
    model, loss, targets = NOT_COMPARABLE[name]
    risk = EmpiricalRisk(model, loss, (X, targets))
    with pytest.raises(ValueError, match=r"^accuracy .*risk\.metric\(theta, function\)"):
        risk.accuracy(risk.parameters())


@pytest.mark.parametrize(
    "metric",
    [
        lambda out, y: out.argmax(1)[:, None] == y[None],
        lambda out, y: (out.argmax(1) == y).double().mean(),
        lambda out, y: (out == 0).double(),
        lambda out, y: 0.5,
        lambda out, y: None,
    ],
)
def test_a_metric_of_another_shape_is_refused(metric: Any) -> None:
    risk = EmpiricalRisk(Shaped(C), CE(), (X, CLASSES))
    with pytest.raises(ValueError, match=r"the metric of 9 samples has shape .*one value a sample, \(9,\)"):
        risk.metric(risk.parameters(), metric)


# ---------------------------------------------------------------------- the Fisher information


def mlp() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C)).to(F64)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=30 + number) / 2)
    return model


def enumerated(model: nn.Module) -> Tensor:
    """(1/N) Σ_n Σ_y p(y|x_n) g gᵀ, g the gradient of −log p(y|x_n)."""
    total = torch.zeros((), dtype=F64)
    for n in range(N):
        outputs = model(X[n : n + 1])
        for label, share in enumerate(outputs.detach().softmax(1)[0]):
            negative = F.cross_entropy(model(X[n : n + 1]), torch.tensor([label]))
            row = plain_gradient(model, negative)
            total = total + share * torch.outer(row, row) / N
    return total


@pytest.mark.parametrize(
    "loss",
    [
        CE(),
        CE(label_smoothing=0.3),
        F.cross_entropy,
        functools.partial(F.cross_entropy, label_smoothing=0.1),
        Named(),
    ],
)
def test_the_fisher_information_of_a_softmax_likelihood(loss: Any) -> None:
    model = mlp()
    risk = EmpiricalRisk(model, loss, (X, CLASSES))
    assert_close(risk.fisher(risk.parameters()).dense(), enumerated(model))


class Cubed(nn.MSELoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 7 * (input - target).abs().pow(3).mean(1)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (Focal(), CLASSES),
        (Cubed(), NUMBERS),
        (CE(weight=WEIGHT), CLASSES),
        (functools.partial(F.cross_entropy, weight=WEIGHT), CLASSES),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), BITS),
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), CLASSES),
        (nn.HuberLoss(), NUMBERS),
    ],
)
def test_what_may_be_no_likelihood_has_no_exact_fisher_information(loss: Any, targets: Tensor) -> None:
    risk = EmpiricalRisk(mlp(), loss, (X, targets))
    with pytest.raises(ValueError, match=r"predictive distribution.*pass sample_targets=\(outputs, generator\)"):
        risk.fisher(risk.parameters())


def test_a_hooked_loss_is_not_taken_for_its_class() -> None:
    loss = CE()
    loss.register_forward_hook(lambda module, given, found: 2 * found)
    model = mlp()
    risk = EmpiricalRisk(model, loss, (X, CLASSES))
    assert_close(risk.loss(risk.parameters()), 2 * F.cross_entropy(model(X), CLASSES).detach())
    with pytest.raises(ValueError, match=r"sample_targets"):
        risk.fisher(risk.parameters())


def drawn(outputs: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(outputs.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("held", ["held", "streamed"])
def test_a_sampled_fisher_information_is_the_mean_over_its_draws(held: str) -> None:
    model = mlp()
    batches = [(X[:2], CLASSES[:2]), (X[2:], CLASSES[2:])]
    data = (X, CLASSES) if held == "held" else batches
    risk = EmpiricalRisk(model, CE(), data, memory_budget=2**30 if held == "held" else TIGHT)
    theta = risk.parameters()
    generator = torch.Generator().manual_seed(5)
    expected, labels = torch.zeros((), dtype=F64), [[] for _ in range(3)]
    size = risk.chunk_size(passes=1)
    ends = [(0, N)] if held == "held" else [(0, 2), (2, N)]
    cuts = [(at, min(at + size, stop)) for start, stop in ends for at in range(start, stop, size)]
    for start, stop in cuts:
        for draw in labels:
            draw += drawn(model(X[start:stop]).detach(), generator).tolist()
    for draw in labels:
        for n, label in enumerate(draw):
            row = plain_gradient(model, F.cross_entropy(model(X[n : n + 1]), torch.tensor([label])))
            expected = expected + torch.outer(row, row) / (3 * N)
    found = risk.fisher(theta, sample_targets=drawn, draws=3, seed=5)
    assert_close(found.dense(), expected)
    assert_close(found.dense(), risk.fisher(theta, sample_targets=drawn, draws=3, seed=5).dense(), rtol=0, atol=0)


def test_many_draws_come_near_the_enumeration() -> None:
    model = mlp()
    risk = EmpiricalRisk(model, CE(), (X, CLASSES))
    found = risk.fisher(risk.parameters(), sample_targets=drawn, draws=300, seed=1).dense()
    expected = enumerated(model)
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_drawing_targets_holds_no_inputs_again() -> None:
    model = nn.Sequential(nn.Linear(2000, 2), nn.Tanh(), nn.Linear(2, C))
    inputs, targets = normal(200, 2000, dtype=torch.float32), classes(200, of=C)
    # no more at once than were tried: the ledger has no numbers to try a larger batch by
    risk = EmpiricalRisk(model, CE(), (inputs, targets), memory_budget=2**22, chunk_size=32)
    theta = risk.parameters()
    for decision in ("bytes_per_sample", "forward_mode", "pushes_gradients", "gradient_width"):
        getattr(risk, decision)
    with Ledger() as ledger:
        operator = risk.fisher(theta, sample_targets=drawn, draws=20)
        _ = operator @ torch.ones_like(theta)
    assert ledger.peak < 2 * 2**22 < 20 * inputs.numel() * 4


# ---------------------------------------------------------------------- what is no loss


def test_a_class_is_no_loss() -> None:
    with pytest.raises(TypeError, match=r"the loss is the class CrossEntropyLoss, .*pass CrossEntropyLoss\(\)"):
        EmpiricalRisk(Shaped(C), CE, (X, CLASSES))


def test_outputs_that_are_no_tensor_are_told_with_the_loss() -> None:
    with pytest.raises(TypeError, match=r"the model returns tuple, which cross_entropy does not take.*out\[0\]"):
        EmpiricalRisk(Shaped(C, then=lambda out: (out, out)), CE(), (X, CLASSES))


def test_a_loss_around_a_reduced_one_is_refused() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CE()

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.inner(outputs, targets)

    with pytest.raises(ValueError, match=r"has shape \(\).*reduction='none'"):
        EmpiricalRisk(Shaped(C), Around(), (X, CLASSES))


def test_no_warning_where_nothing_is_amiss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormalisationWarning)
        for case in TRAINED.values():
            EmpiricalRisk(case.model(), case.criterion, (X, case.targets))
