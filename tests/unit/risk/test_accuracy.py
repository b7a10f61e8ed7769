"""Accuracy and metrics: means over samples, and refused where they would be a guess."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import noisescape as ns
from cases import CASES, F64, Case, close
from criteria import BITS, CE, CLASSES, NUMBERS, TIGHT, TOKENS, C, N, Shaped, T, X, ignoring
from noisescape.risk import EmpiricalRisk


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


def test_accuracy_reads_logits_where_a_model_returns_more() -> None:
    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(inputs)}

    model, data = Classifier(), (torch.randn(8, 3), torch.randint(0, 2, (8,)))
    risk = ns.EmpiricalRisk(
        model, lambda out, y: torch.nn.functional.cross_entropy(out["logits"], y, reduction="none"), data
    )
    wanted = (model.head(data[0]).argmax(1) == data[1]).float().mean()
    torch.testing.assert_close(risk.accuracy(risk.parameters()), wanted)
