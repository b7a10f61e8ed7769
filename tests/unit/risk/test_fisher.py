"""The Fisher information by enumeration of the classes, sampled, or refused where a loss is no likelihood."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from cases import F64, classes, normal
from criteria import BITS, CE, CLASSES, NUMBERS, TIGHT, WEIGHT, C, Focal, N, Named, X, plain_gradient
from internals import chunk_size, decide
from noisescape.measurement.memory import AllocationTracker
from noisescape.risk import EmpiricalRisk
from slowness import quick


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


@pytest.mark.parametrize("held", quick(["held"], ["streamed"]))
def test_a_sampled_fisher_information_is_the_mean_over_its_draws(held: str) -> None:
    model = mlp()
    batches = [(X[:2], CLASSES[:2]), (X[2:], CLASSES[2:])]
    data = (X, CLASSES) if held == "held" else batches
    risk = EmpiricalRisk(model, CE(), data, memory_budget=2**30 if held == "held" else TIGHT)
    theta = risk.parameters()
    generator = torch.Generator().manual_seed(5)
    expected, labels = torch.zeros((), dtype=F64), [[] for _ in range(3)]
    size = chunk_size(risk, passes=1)
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
    decide(risk)
    with AllocationTracker() as ledger:
        operator = risk.fisher(theta, sample_targets=drawn, draws=20)
        _ = operator @ torch.ones_like(theta)
    assert ledger.peak < 2 * 2**22 < 20 * inputs.numel() * 4
