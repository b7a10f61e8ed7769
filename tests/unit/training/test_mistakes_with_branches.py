"""What cannot be checked by branches is refused before any of them is trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import noisescape as ns
from branch_cases import lively, lively_data
from noisescape.errors import NoisescapeError, NonFiniteLossError
from noisescape.training.branch_training import Laboratory


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Laboratory, "train", lambda *_: pytest.fail("a branch was trained"))


def refusal(**changed: Any) -> str:
    model = changed.pop("model", lively())
    optimizer = changed.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    loss, data = changed.pop("loss", cross_entropy), changed.pop("data", lively_data())
    settings = {"batch_size": 4, "multiples": (1, 2), "samples": 64, "tolerance": 0.1, "seeds": 3} | changed
    with pytest.raises(NoisescapeError) as refused:
        ns.branched_check(model, optimizer, loss, data, **settings)
    message = str(refused.value)
    assert "\n" not in message
    return message


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(*lively_data(), strict=True)


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.lock = threading.Lock()


class Own(torch.optim.SGD):
    """Keeps its parameters where a copy of its groups does not reach them."""

    def __deepcopy__(self, memo: Any) -> Own:
        return self


class Keyed(Dataset[Any]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.zeros(4), "labels": torch.zeros(())}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": 32}, "batches of 32 × 2 = 64 exceed the 48 samples of the data: give smaller multiples"),
        ({"samples": 7}, "samples = 7 is too few: all branches take whole steps after 8 samples"),
        ({"samples": 23, "multiples": (1, 2, 3)}, "after 24 samples"),
        ({"samples": 64.0}, "samples must be a whole number"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a whole number of at least 1"),
        ({"tolerance": 0.0}, "tolerance must be over 0, in units of the loss, not 0.0"),
        ({"tolerance": float("nan")}, "tolerance must be over 0"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"seeds": (4, 4)}, "seeds must be different whole numbers"),
        ({"seeds": (-1, 4)}, "seeds must be different whole numbers of at least 0"),
        ({"multiples": (2, 4)}, "multiples must be 1 and larger ones in increasing order"),
        ({"multiples": (1, 4, 2)}, "multiples must be 1 and larger ones in increasing order"),
        ({"multiples": (1,)}, "multiples must be 1 and larger ones"),
        ({"multiples": (1, 1.5)}, "multiples must be whole numbers"),
        ({"rule": "quadratic"}, "rule must be one of auto, linear, sqrt, constant, not 'quadratic'"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "loss is a sum over the samples of a batch"),
        ({"loss": lambda x, y: cross_entropy(x, y, reduction="sum")}, "loss is a sum over the samples of a batch"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "loss gives a tensor of shape (4,), not the mean"),
        ({"loss": lambda x, y: 1.0}, "loss gives float, not a tensor"),
        ({"loss": nn.CrossEntropyLoss}, "loss must be callable as loss(outputs, targets)"),
        ({"loss": lambda x, y: cross_entropy(x, y) * float("nan")}, "loss of the first samples is nan"),
        ({"evaluation": lambda model: float("inf")}, "the evaluation at the checkpoint gives inf"),
        ({"data": Endless()}, "which Endless does not give; pass (inputs, targets)"),
        ({"data": DataLoader(Endless())}, "which Endless does not give"),
        ({"data": iter(())}, "which tuple_iterator does not give"),
        ({"data": []}, "the data holds no samples"),
        ({"data": Keyed()}, "each batch must be a pair (inputs, targets), not dict"),
        ({"evaluation": Endless()}, "which Endless does not give"),
        ({"model": Locked()}, "cannot be copied (TypeError: cannot pickle '_thread.lock' object)"),
    ],
)
def test_a_mistake_is_told_before_any_branch(changed: dict[str, Any], message: str) -> None:
    assert message in refusal(**changed)


def test_model_and_optimiser_must_belong_together() -> None:
    other = lively()
    assert "parameters that are not the model's" in refusal(optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    assert "must be one of PyTorch's, not str" in refusal(optimizer="sgd")
    assert "LBFGS evaluates" in refusal(model=other, optimizer=torch.optim.LBFGS(other.parameters()))
    message = refusal(model=other, optimizer=torch.optim.Adagrad(other.parameters()))
    assert message == 'rule="auto" knows SGD and Adam, not Adagrad; give rule="linear", "sqrt" or "constant"'
    message = refusal(model=other, optimizer=Own(other.parameters(), lr=0.1), rule="sqrt")
    assert "a copy of Own does not step the copied model's parameters" in message
    plain = nn.Parameter(torch.zeros(3))
    assert "model must be a torch.nn.Module, not function" in refusal(
        model=lambda x: x, optimizer=torch.optim.SGD([plain], lr=0.1)
    )
    assert "no parameters" in refusal(model=nn.ReLU(), optimizer=torch.optim.SGD([plain], lr=0.1))


def test_a_loss_with_parameters_of_its_own_is_trained_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return cross_entropy(self.scale * outputs, targets)

    monkeypatch.undo()
    model, loss = lively(), Weighed()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    given = {"batch_size": 4, "multiples": (1, 2), "samples": 64, "tolerance": 1.0, "seeds": 2}
    found = ns.branched_check(model, optimizer, loss, TensorDataset(*lively_data()), **given)
    assert found.branches[0].loss.value != found.start
    assert float(loss.scale.detach()) == 1.0


def test_a_loss_that_is_not_finite_is_an_arithmetic_error() -> None:
    model = lively()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="at the checkpoint"):
        ns.branched_check(model, optimizer, cross_entropy, lively_data(), batch_size=4, samples=64, tolerance=1.0)
