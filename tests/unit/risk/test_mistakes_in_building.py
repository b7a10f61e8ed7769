"""What a newcomer gets wrong in building a risk, and the error that says what to do: one row a mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torch.utils.data.sampler import BatchSampler

from cases import CASES, F64, Tagger, bowl, normal
from mistakes import CE, X, Y, build, linear, with_a_nan
from noisescape.errors import BatchCouplingError
from noisescape.risk import EmpiricalRisk
from noisescape.risk.passes import unchecked_losses


class FunctionalDropout(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5)


class CentredOnItsBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return outputs - outputs.mean(0)


def _partly_on_meta() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"))


def _two_dtypes() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).to(F64))


def _shuffled_batches() -> DataLoader:
    data = TensorDataset(X, Y)
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=False))


CONSTRUCTION: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "batch norm in training mode": (
        lambda: build(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(F64)),
        BatchCouplingError,
        r"BatchNorm1d '1' uses batch statistics.*model\.eval\(\)",
    ),
    "batch norm without running statistics": (
        lambda: build(nn.Sequential(linear(), nn.BatchNorm1d(3, track_running_stats=False).to(F64)).eval()),
        BatchCouplingError,
        r"track_running_stats=True",
    ),
    "active dropout": (
        lambda: build(nn.Sequential(linear(), nn.Dropout(0.2))),
        BatchCouplingError,
        r"Dropout '1' drops units at random \(p = 0\.2\).*model\.eval\(\)",
    ),
    "dropout inside a recurrent module": (
        lambda: build(nn.LSTM(3, 3, num_layers=2, dropout=0.1).to(F64)),
        BatchCouplingError,
        r"LSTM drops units at random \(p = 0\.1\)",
    ),
    "dropout inside attention": (
        lambda: build(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).to(F64)),
        BatchCouplingError,
        r"drops units at random \(p = 0\.1\)",
    ),
    "functional dropout": (
        lambda: build(FunctionalDropout(3, 3).to(F64)),
        BatchCouplingError,
        r"draws random numbers; call model\.eval\(\)",
    ),
    "batch statistics of one's own": (
        lambda: build(CentredOnItsBatch(3, 3).to(F64)),
        BatchCouplingError,
        r"samples of a batch influence each other",
    ),
    "outputs broadcast against targets": (
        lambda: build(nn.Linear(3, 1).to(F64), lambda out, y: (out - y) ** 2, (X, normal(10, seed=3))),
        ValueError,
        r"of 10 samples has shape \(10, 10\), that of one \(1, 1\)",
    ),
    "reduced loss": (
        lambda: build(loss=lambda out, y: CE(out, y)),
        ValueError,
        r"the loss of 10 samples has shape \(\).*reduction='none'",
    ),
    "loss summed over the samples": (
        lambda: build(loss=lambda out, y: CE(out, y, reduction="none").sum(0, keepdim=True)),
        ValueError,
        r"shape \(1,\): per-sample values of shape \(10,\)",
    ),
    "loss that returns no tensor": (
        lambda: build(loss=lambda out, y: 1.0),
        TypeError,
        r"the loss returned float",
    ),
    "loss that cannot be called": (lambda: build(loss="cross_entropy"), TypeError, r"callable.*str"),
    "model that is no module": (lambda: build(lambda x: x), TypeError, r"nn\.Module.*from_losses"),
    "no trainable parameter": (
        lambda: build(linear().requires_grad_(False)),
        ValueError,
        r"no trainable parameter: every requires_grad is False",
    ),
    "module without parameters": (lambda: build(nn.Tanh()), ValueError, r"no trainable parameter"),
    "empty tensors": (lambda: build(data=(X[:0], Y[:0])), ValueError, r"data set is empty"),
    "empty data set": (lambda: build(data=TensorDataset(X[:0], Y[:0])), ValueError, r"data set is empty"),
    "no batches": (lambda: build(data=[]), ValueError, r"data set is empty"),
    "unequal lengths": (
        lambda: build(data=(X, Y[:7])),
        ValueError,
        r"inputs and targets disagree on the number of samples: first dimensions are \[7, 10\]",
    ),
    "tensor without samples": (lambda: build(data=(X, torch.tensor(1))), ValueError, r"no sample dimension"),
    "one tensor only": (lambda: build(data=X), (TypeError, ValueError), r"pair \(inputs, targets\)"),
    "unknown kind of data": (lambda: build(data=42), TypeError, r"map-style data set or a re-iterable.*int"),
    "batches that are no pairs": (
        lambda: build(data=[(X, Y, Y), (X, Y, Y), (X, Y, Y)]),
        ValueError,
        r"each batch must be a pair \(inputs, targets\)",
    ),
    "one-pass generator": (
        lambda: build(data=((X, Y) for _ in range(2))),
        ValueError,
        r"one-pass iterator.*list of batches",
    ),
    "shuffled loader": (
        lambda: build(data=DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)),
        ValueError,
        r"DataLoader shuffles.*shuffle=False",
    ),
    "loader whose batch sampler shuffles": (
        lambda: build(data=_shuffled_batches()),
        ValueError,
        r"DataLoader shuffles",
    ),
    "data on another device": (
        lambda: build(data=(X.to("meta"), Y)),
        ValueError,
        r"mixed devices: the parameters are on cpu, a data tensor of shape \(10, 3\) is on meta",
    ),
    "model on two devices": (lambda: build(_partly_on_meta()), ValueError, r"mixed devices.*cpu, meta"),
    "model of two dtypes": (
        lambda: build(_two_dtypes()),
        ValueError,
        r"several dtypes \(torch\.float32, torch\.float64\)",
    ),
    "data of another dtype than the model": (
        lambda: build(nn.Linear(3, 3)),
        ValueError,
        r"(?s)float64.*float32|float32.*float64",
    ),
    "chunk size of zero": (lambda: build(chunk_size=0), ValueError, r"chunk_size must be at least 1, not 0"),
    "negative memory budget": (
        lambda: build(memory_budget=-1),
        ValueError,
        r"memory_budget must be at least 1, not -1",
    ),
    "function that returns one number": (
        lambda: EmpiricalRisk.from_losses(lambda w: w.sum(), torch.zeros(2)),
        ValueError,
        r"losses returned \(\) .*expected one loss a sample, \(N,\)",
    ),
    "loss of a sample that does not broadcast": (
        lambda: EmpiricalRisk.from_sample_loss(lambda w, x: ((w - x) ** 2).sum(), X, torch.zeros(3, dtype=F64)),
        ValueError,
        r"has shape \(\); expected one value a sample",
    ),
    "closed form of no data": (
        lambda: EmpiricalRisk.from_sample_loss(
            lambda w, x: ((w - x) ** 2).sum(-1), X[:0], torch.zeros(3, dtype=F64)
        ),
        ValueError,
        r"at least one sample",
    ),
    "closed form with data on another device": (
        lambda: EmpiricalRisk.from_sample_loss(
            lambda w, x: ((w - x) ** 2).sum(-1), X.to("meta"), torch.zeros(3, dtype=F64)
        ),
        ValueError,
        r"mixed devices: parameters are on cpu, data on meta",
    ),
    "function that returns no tensor": (
        lambda: EmpiricalRisk.from_losses(lambda w: [1.0], torch.zeros(2)),
        ValueError,
        r"returned list",
    ),
    "matrix of parameters": (
        lambda: EmpiricalRisk.from_losses(bowl, torch.zeros(2, 3)),
        ValueError,
        r"flat floating-point.*\(2, 3\)",
    ),
    "integer parameters": (
        lambda: EmpiricalRisk.from_losses(bowl, torch.zeros(3, dtype=torch.int64)),
        ValueError,
        r"flat floating-point.*int64",
    ),
}


def test_non_finite_data_is_no_obstacle_to_building_the_risk() -> None:
    assert unchecked_losses(with_a_nan(), torch.ones(12, dtype=F64)).isnan().sum() == 1


def test_an_untouched_tagger_is_accepted() -> None:
    """A control of the checks: integer inputs, (n, C, T) outputs and nothing wrong."""
    assert build(Tagger().to(F64), CE, CASES["sequence"].data).sample_count == 7


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_a_mistake_in_building_gets_an_error_that_names_it_and_the_mend(name: str) -> None:
    make, error, message = CONSTRUCTION[name]
    with pytest.raises(error, match=message):
        make()
