"""What a newcomer gets wrong, and the error that says what to do: one row a mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torch.utils.data.sampler import BatchSampler

from cases import CASES, F64, Tagger, bowl, bowl_risk, classes, normal
from noisescape.errors import BatchCouplingError, NonFiniteLossError
from noisescape.linops import (
    DenseOperator,
    DiagonalOperator,
    Estimate,
    diagonal,
    eigenpairs,
    product_trace,
    spectral_density,
    trace,
)
from noisescape.risk import EmpiricalRisk

CE = nn.functional.cross_entropy
X, Y = normal(10, 3, seed=1), classes(10, of=3, seed=2)
MLP = CASES["mlp cross-entropy"]


def linear() -> nn.Module:
    return nn.Linear(3, 3).to(F64)


def build(model: nn.Module | None = None, loss=CE, data=None, **options) -> EmpiricalRisk:
    return EmpiricalRisk(linear() if model is None else model, loss, (X, Y) if data is None else data, **options)


class FunctionalDropout(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5)


class CentredOnItsBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return outputs - outputs.mean(0)


class TwoOutputs(nn.Linear):
    def forward(self, x: Tensor):
        outputs = super().forward(x)
        return outputs, outputs


def _partly_on_meta() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"))


def _two_dtypes() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).to(F64))


def _shuffled_batches() -> DataLoader:
    data = TensorDataset(X, Y)
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=False))


def _nan_sample() -> EmpiricalRisk:
    x = X.clone()
    x[4, 1] = torch.nan
    return build(data=(x, Y))


def _risk_on_shrunken_data() -> EmpiricalRisk:
    batches = [(X[:5], Y[:5]), (X[5:8], Y[5:8]), (X[8:], Y[8:])]
    risk = build(data=batches, memory_budget=1)
    batches.pop()
    return risk


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

THETA = MLP.theta
RISK = MLP.risk()
STREAM = MLP.risk(memory_budget=1)


USE: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "θ of the wrong length": (
        lambda: RISK.loss(THETA[:-1]),
        ValueError,
        r"θ must have shape \(31,\) or \(R, 31\)",
    ),
    "θ of too many dimensions": (
        lambda: RISK.gradient(THETA[None, None]),
        ValueError,
        r"θ must have shape.*\(1, 1, 31\)",
    ),
    "θ of the wrong dtype": (
        lambda: RISK.loss(THETA.float()),
        ValueError,
        r"θ is torch\.float32 but the risk is torch\.float64.*\.to\(",
    ),
    "θ on another device": (
        lambda: RISK.loss(THETA.to("meta")),
        ValueError,
        r"mixed devices: θ is on meta, the risk on cpu",
    ),
    "inference mode": (
        torch.inference_mode()(lambda: RISK.gradient(THETA)),
        RuntimeError,
        r"inference mode records no derivatives: leave it",
    ),
    "θ that is no tensor": (lambda: RISK.loss(THETA.tolist()), TypeError, r"flat torch\.Tensor.*list"),
    "replicas where one θ is needed": (
        lambda: RISK.hessian(THETA[None]),
        ValueError,
        r"θ must have shape \(31,\), not \(1, 31\)",
    ),
    "non-finite loss": (
        lambda: _nan_sample().loss(torch.ones(12, dtype=F64)),
        NonFiniteLossError,
        r"1 of 10 losses are not finite, the first that of sample 4 \(nan\)",
    ),
    "diverged θ": (
        lambda: bowl_risk().losses(torch.full((3,), 1e200, dtype=F64)),
        NonFiniteLossError,
        r"6 of 6 losses are not finite.*smaller learning rate",
    ),
    "weights of the wrong length": (
        lambda: RISK.weighted_gradient(THETA, torch.ones(7, dtype=F64)),
        ValueError,
        r"\(11,\), not \(7,\)",
    ),
    "block of weights of the wrong length": (
        lambda: RISK.weighted_gradient(THETA, torch.ones(7, 2, dtype=F64)),
        ValueError,
        r"\(11, 2\), not \(7, 2\)",
    ),
    "weights of too many dimensions": (
        lambda: RISK.weighted_gradient(THETA, torch.ones(11, 2, 11, dtype=F64)),
        ValueError,
        r"weights must have",
    ),
    "direction of the wrong length": (
        lambda: RISK.hessian_product(THETA, THETA[:-1]),
        ValueError,
        r"directions must have shape \(31,\).*\(30,\)",
    ),
    "one direction for many replicas": (
        lambda: RISK.directional_derivatives(THETA.repeat(2, 1), THETA),
        ValueError,
        r"with replicas, directions",
    ),
    "index out of range": (
        lambda: RISK.minibatch_gradient(THETA, torch.tensor([0, 11])),
        IndexError,
        r"0\.\.10",
    ),
    "negative index": (lambda: RISK.minibatch_gradient(THETA, torch.tensor([-1])), IndexError, r"0\.\.10"),
    "empty minibatch": (
        lambda: RISK.minibatch_gradient(THETA, torch.tensor([], dtype=torch.long)),
        ValueError,
        r"at least one index",
    ),
    "a batch for each replica, but one θ": (
        lambda: RISK.minibatch_gradient(THETA, torch.tensor([[0, 1], [2, 3]])),
        ValueError,
        r"indices",
    ),
    "batches for another number of replicas": (
        lambda: RISK.minibatch_gradient(THETA.repeat(3, 1), torch.tensor([[0, 1], [2, 3]])),
        ValueError,
        r"indices|size",
    ),
    "B > N without replacement": (
        lambda: RISK.noise_covariance(THETA, 12, replacement=False),
        ValueError,
        r"batch_size = 12 exceeds the 11 samples.*replacement=True",
    ),
    "B = 0": (lambda: RISK.noise_covariance(THETA, 0), ValueError, r"batch_size must be at least 1, not 0"),
    "per-sample gradients beyond the budget": (
        lambda: STREAM.per_sample_gradients(THETA),
        ValueError,
        r"per_sample_gradient_chunks",
    ),
    "data that changes between passes": (
        lambda: _risk_on_shrunken_data().loss(torch.ones(12, dtype=F64)),
        ValueError,
        r"10 samples on its first pass and 8 on a later",
    ),
    "Fisher of an unknown loss": (
        lambda: build(loss=lambda out, y: CE(out, y, reduction="none")).fisher(torch.ones(12, dtype=F64)),
        ValueError,
        r"sample_targets=\(outputs, generator\)",
    ),
    "Fisher of a weighted loss": (
        lambda: build(loss=nn.CrossEntropyLoss(weight=torch.ones(3, dtype=F64))).fisher(torch.ones(12, dtype=F64)),
        ValueError,
        r"sample_targets",
    ),
    "no draws for the Fisher": (
        lambda: RISK.fisher(THETA, sample_targets=lambda out, g: MLP.targets, draws=0),
        ValueError,
        r"draws must be at least 1, not 0",
    ),
    "Gauss–Newton of a closed form": (
        lambda: bowl_risk().gauss_newton(torch.zeros(3, dtype=F64)) @ torch.zeros(3, dtype=F64),
        ValueError,
        r"EmpiricalRisk\(model, loss, data\)",
    ),
    "accuracy of a closed form": (
        lambda: bowl_risk().accuracy(torch.zeros(3, dtype=F64)),
        ValueError,
        r"model with outputs",
    ),
    "Gauss–Newton of a model with two outputs": (
        lambda: (
            build(TwoOutputs(3, 3).to(F64), lambda out, y: CE(out[0], y, reduction="none")).gauss_newton(
                torch.ones(12, dtype=F64)
            )
            @ torch.ones(12, dtype=F64)
        ),
        TypeError,
        r"return one tensor, not tuple",
    ),
    "draws from a Gauss–Newton that is no covariance": (
        lambda: build(loss=lambda out, y: -(out**2).sum(1)).gauss_newton(torch.ones(12, dtype=F64)).sample(2),
        ValueError,
        r"not convex in the model's outputs",
    ),
    "metric that is already averaged": (
        lambda: RISK.metric(THETA, lambda out, y: out.mean()),
        ValueError,
        r"one value a sample, \(11,\)",
    ),
}

A = DenseOperator(torch.diag(torch.arange(40.0, dtype=F64) - 3))
SMALL = DiagonalOperator(torch.ones(3, dtype=F64))

OPERATORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "k of zero": (lambda: eigenpairs(A, 0), ValueError, r"k = 0 eigenpairs.*1\.\.40"),
    "k over D": (lambda: eigenpairs(A, 41), ValueError, r"k = 41 .*1\.\.40"),
    "unknown end of the spectrum": (
        lambda: eigenpairs(A, 1, which="LM"),
        ValueError,
        r"which must be one of.*largest.*'LM'",
    ),
    "rtol of zero": (lambda: trace(A, rtol=0), ValueError, r"rtol .*must be positive, not 0"),
    "negative rtol": (lambda: product_trace(A, A, rtol=-0.1), ValueError, r"rtol .*-0\.1"),
    "rtol that is no number": (lambda: diagonal(A, rtol=float("nan")), ValueError, r"rtol .*nan"),
    "too small a budget": (
        lambda: trace(A, max_products=1),
        ValueError,
        r"max_products must allow at least 2",
    ),
    "sizes that differ": (lambda: product_trace(A, SMALL), ValueError, r"cannot multiply.*sizes differ"),
    "dtypes that differ": (
        lambda: product_trace(SMALL, DiagonalOperator(torch.ones(3))),
        ValueError,
        r"cannot multiply.*dtypes",
    ),
    "sum of sizes that differ": (lambda: A + SMALL, ValueError, r"cannot add.*sizes differ"),
    "sum of dtypes that differ": (
        lambda: SMALL + DiagonalOperator(torch.ones(3)),
        ValueError,
        r"cannot add.*dtypes",
    ),
    "one probe": (lambda: spectral_density(A, probes=1), ValueError, r"standard error needs at least 2"),
    "bandwidth of zero": (
        lambda: spectral_density(A, bandwidth=0),
        ValueError,
        r"bandwidth must be positive",
    ),
    "vector of the wrong length": (
        lambda: A @ torch.ones(3, dtype=F64),
        ValueError,
        r"matrix is 40 × 40; it multiplies a vector \(40,\)",
    ),
    "row vector": (lambda: A @ torch.ones(1, 40, dtype=F64), ValueError, r"columns \(40, K\).*\(1, 40\)"),
    "vector of the wrong dtype": (
        lambda: A @ torch.ones(40),
        ValueError,
        r"holds torch\.float64 on cpu, but was given torch\.float32",
    ),
    "vector on another device": (
        lambda: A @ torch.ones(40, dtype=F64, device="meta"),
        ValueError,
        r"on cpu, but was given .* meta",
    ),
    "array of numpy": (
        lambda: A @ torch.ones(40, dtype=F64).numpy(),
        TypeError,
        r"takes a torch\.Tensor.*ndarray",
    ),
    "draws from an indefinite matrix": (
        lambda: A.sample(1),
        ValueError,
        r"not known to be positive semi-definite",
    ),
    "matrix that is not square": (
        lambda: DenseOperator(torch.ones(2, 3)),
        ValueError,
        r"must be square, not of shape \(2, 3\)",
    ),
    "matrix that is not symmetric": (
        lambda: DenseOperator(torch.tensor([[0.0, 1.0], [2.0, 0.0]])),
        ValueError,
        r"not symmetric; pass",
    ),
    "matrix too large to form": (
        lambda: DiagonalOperator(torch.ones(20_001)).dense(),
        ValueError,
        r"20001 × 20001, too large to form",
    ),
    "level of an interval": (
        lambda: Estimate(1.0, 0.1).interval(95),
        ValueError,
        r"strictly between 0 and 1, not 95",
    ),
}

MISTAKES = {**CONSTRUCTION, **USE, **OPERATORS}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_an_error_that_names_it_and_the_mend(name: str) -> None:
    make, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        make()


def test_b_equal_to_n_without_replacement_has_no_noise() -> None:
    covariance = RISK.noise_covariance(THETA, 11, replacement=False)
    assert torch.equal(covariance.dense(), torch.zeros(31, 31, dtype=F64))


def test_non_finite_data_is_no_obstacle_to_building_the_risk() -> None:
    assert _nan_sample().unchecked_losses(torch.ones(12, dtype=F64)).isnan().sum() == 1


def test_an_untouched_tagger_is_accepted() -> None:
    """A control of the checks: integer inputs, (n, C, T) outputs and nothing wrong."""
    assert build(Tagger().to(F64), CE, CASES["sequence"].data).sample_count == 7
