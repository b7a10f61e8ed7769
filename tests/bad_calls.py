"""Calls that users get wrong, by the public name that is called: what was done, the call, what the error names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisescape as ns
from cases import F64, classes, normal
from noisescape import linops, measurement
from noisescape.theory import landscapes

Call = Callable[[], object]
NAN = math.nan
CE, MSE = nn.functional.cross_entropy, nn.functional.mse_loss
X, Y = normal(10, 3, seed=1), classes(10, of=3, seed=2)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 3, dtype=F64)


def build(model: Any = None, loss: Any = CE, data: Any = (X, Y), **options: Any) -> ns.EmpiricalRisk:
    return ns.EmpiricalRisk(linear() if model is None else model, loss, data, **options)


def nan_at(tensor: Tensor) -> Tensor:
    """The same with one entry NaN."""
    changed = tensor.clone()
    changed.view(-1)[4] = NAN
    return changed


RISK = build()
THETA = RISK.parameters()
POINTS = normal(6, 3, seed=3)
START = torch.zeros(3, dtype=F64)
BOWL = landscapes.quadratic(torch.eye(3, dtype=F64), POINTS)
A = linops.DenseOperator(torch.diag(torch.arange(1.0, 6.0, dtype=F64)), psd=True)
INDEFINITE = linops.DenseOperator(torch.diag(torch.tensor([1.0, -1.0, 2.0], dtype=F64)))
SMALL = linops.DenseOperator(torch.eye(2, dtype=F64))
EYE = torch.eye(2, dtype=F64)
MODEL = nn.Linear(3, 3)
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)
PAIR = (X.float(), Y)


class Strings(nn.Module):
    """Gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=F64))

    def forward(self, x: Tensor) -> str:
        return "a"


class Detached(nn.Linear):
    """Has parameters, none of which the outputs depend on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@dataclass(frozen=True)
class Bad:
    """A call, and what its error must have in it."""

    call: Call
    names: str


def _used_up() -> Iterator[Any]:
    found = iter([(X, Y)])
    next(found)
    return found


BUILDING: dict[str, Bad] = {
    "a model class": Bad(lambda: build(nn.Linear), "nn.Module, not the class Linear"),
    "no model": Bad(lambda: ns.EmpiricalRisk(None, CE, (X, Y)), "model"),
    "a model's state dict": Bad(lambda: build(linear().state_dict()), "nn.Module"),
    "nothing to train": Bad(lambda: build(linear().requires_grad_(False)), "requires_grad is False"),
    "outputs without a graph": Bad(lambda: build(Detached(3, 3, dtype=F64)), "do not depend on"),
    "outputs that are text": Bad(lambda: build(Strings(), lambda out, y: (out, y)), "loss returned tuple"),
    "no loss": Bad(lambda: build(loss=None), "loss must be callable as loss(outputs, targets), not NoneType"),
    "a loss's class": Bad(lambda: build(loss=nn.CrossEntropyLoss), "loss"),
    "a loss's name": Bad(lambda: build(loss="cross_entropy"), "loss must be callable"),
    "a loss that is a number": Bad(lambda: build(loss=lambda out, y: 1.0), "loss returned float"),
    "a loss that is a list": Bad(lambda: build(loss=lambda out, y: [out.sum()]), "loss returned list"),
    "a loss summed": Bad(lambda: build(loss=lambda out, y: CE(out, y, reduction="sum")), "reduction='none'"),
    "a loss of whole numbers": Bad(lambda: build(loss=lambda out, y: (out.argmax(1) != y).long()), "loss"),
    "a loss that is detached": Bad(
        lambda: build(loss=lambda out, y: CE(out.detach(), y, reduction="none")), "do not depend on"
    ),
    "complex losses": Bad(lambda: build(loss=lambda out, y: out.sum(1) + 1j), "complex"),
    "a loss of three arguments": Bad(lambda: build(loss=lambda out, y, w: out.sum(1)), "loss"),
    "labels out of range": Bad(lambda: build(data=(X, Y + 5)), "target"),
    "labels below 0": Bad(lambda: build(data=(X, Y - 3)), "target"),
    "labels that are floats": Bad(lambda: build(data=(X, Y.double())), "targets"),
    "inputs that are whole numbers": Bad(lambda: build(data=(Y[:, None].expand(-1, 3), Y)), "int64"),
    "inputs that are bools": Bad(lambda: build(data=(X > 0, Y)), "bool"),
    "inputs of the wrong width": Bad(lambda: build(data=(X[:, :2], Y)), "shape"),
    "no data": Bad(lambda: build(data=None), "data must be a pair (inputs, targets)"),
    "no samples": Bad(lambda: build(data=(X[:0], Y[:0])), "data set is empty"),
    "no targets": Bad(lambda: build(data=(X, None)), "targets"),
    "lengths that differ": Bad(lambda: build(data=(X, Y[:7])), "disagree on the number of samples"),
    "arrays for tensors": Bad(lambda: build(data=(X.numpy(), Y.numpy())), "torch.from_numpy"),
    "nested lists for tensors": Bad(lambda: build(data=(X.tolist(), Y.tolist())), "mixed dtypes"),
    "data that is text": Bad(lambda: build(data="data.csv"), "data"),
    "a path for data": Bad(lambda: build(data=Path("data.csv")), "data must be a pair"),
    "a dict of data": Bad(lambda: build(data={"x": X, "y": Y}), "pair (inputs, targets), not dict"),
    "a used-up generator": Bad(lambda: build(data=_used_up()), "one-pass iterator"),
    "a loader that shuffles": Bad(
        lambda: build(data=DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)), "shuffle=False"
    ),
    "inputs alone": Bad(lambda: build(data=DataLoader(TensorDataset(X), batch_size=4)), "pair (inputs, targets)"),
    "a chunk of 2.5": Bad(lambda: build(chunk_size=2.5), "chunk_size must be an int, not 2.5"),
    "a budget as text": Bad(lambda: build(memory_budget="1GiB"), "memory_budget must be an int, not '1GiB'"),
    "an unknown normalisation": Bad(lambda: build(normalisation="mean"), "normalisation"),
    "a rank for a shard": Bad(lambda: build(shard=0), "shard is a Shard, Shard.of_process_group(), not int"),
    "another device's name": Bad(lambda: RISK.to("gpu"), "device"),
    "a device without numbers": Bad(lambda: RISK.to("meta"), "device 'meta' holds no numbers"),
    "a GPU that is not there": Bad(lambda: RISK.to("cuda:77"), "cuda:77"),
    "a dtype of whole numbers": Bad(lambda: RISK.to(torch.int64), "floating-point"),
    "a dtype that is complex": Bad(lambda: RISK.to(torch.complex64), "floating-point"),
    "a target of None": Bad(lambda: RISK.to(None), "NoneType"),
    "other data of another width": Bad(lambda: RISK.with_data((X[:, :2], Y)), "shape"),
    "no test data": Bad(lambda: RISK.with_data(None), "data must be a pair"),
    "a list of parameters": Bad(
        lambda: ns.EmpiricalRisk.from_losses(lambda w: w, [0.0, 1.0]), "parameters must be a flat torch.Tensor"
    ),
    "an array of data": Bad(
        lambda: ns.EmpiricalRisk.from_sample_loss(lambda w, x: (w - x).sum(-1), POINTS.numpy(), START),
        "data must be a torch.Tensor (N, ...), not ndarray",
    ),
    "losses that are a number": Bad(lambda: ns.EmpiricalRisk.from_losses(0.5, START), "losses must be a function"),
}

USING: dict[str, Bad] = {
    "θ of whole numbers": Bad(lambda: ns.EmpiricalRisk.loss(RISK, THETA.long()), "θ is torch.int64"),
    "θ complex": Bad(lambda: ns.EmpiricalRisk.loss(RISK, THETA + 0j), "θ is torch.complex128"),
    "θ an array": Bad(lambda: ns.EmpiricalRisk.loss(RISK, THETA.numpy()), "θ must be a flat torch.Tensor"),
    "θ a parameter list": Bad(
        lambda: ns.EmpiricalRisk.gradient(RISK, list(MODEL.parameters())), "risk.parameters()"
    ),
    "θ NaN": Bad(lambda: ns.EmpiricalRisk.loss(RISK, nan_at(THETA)), "losses are not finite"),
    "NaN in the data": Bad(
        lambda: ns.EmpiricalRisk.loss(build(data=(nan_at(X), Y)), THETA), "the first that of sample 1 (nan)"
    ),
    "directions a list": Bad(lambda: ns.EmpiricalRisk.hvp(RISK, THETA, [0.0] * 12), "directions"),
    "directions of float32": Bad(lambda: ns.EmpiricalRisk.hvp(RISK, THETA, THETA.float()), "directions"),
    "directions too short": Bad(lambda: ns.EmpiricalRisk.jvp(RISK, THETA, THETA[:5]), "directions must have shape"),
    "weights of whole numbers": Bad(
        lambda: ns.EmpiricalRisk.vjp(RISK, THETA, torch.ones(10, dtype=torch.int64)), "weights"
    ),
    "weights a list": Bad(lambda: ns.EmpiricalRisk.vjp(RISK, THETA, [1.0] * 10), "weights"),
    "indices of floats": Bad(
        lambda: ns.EmpiricalRisk.minibatch_gradient(RISK, THETA, torch.tensor([0.0])), "indices of samples"
    ),
    "an index too large": Bad(
        lambda: ns.EmpiricalRisk.per_sample_gradients(RISK, THETA, torch.tensor([10])), "0..9"
    ),
    "a metric that is none": Bad(lambda: ns.EmpiricalRisk.metric(RISK, THETA, None), "metric"),
    "a metric of floats": Bad(lambda: ns.EmpiricalRisk.metric(RISK, THETA, lambda out, y: 0.5), "metric"),
    "a batch of True": Bad(
        lambda: ns.EmpiricalRisk.noise_covariance(RISK, THETA, True), "batch_size must be an int"
    ),
    "replacement as text": Bad(
        lambda: ns.EmpiricalRisk.noise_covariance(RISK, THETA, 4, replacement="no"),
        "replacement must be True or False, not 'no'",
    ),
    "targets that nobody draws": Bad(
        lambda: ns.EmpiricalRisk.fisher(RISK, THETA, sample_targets=lambda out, g: None), "sample_targets returned"
    ),
    "draws of 1.5": Bad(
        lambda: ns.EmpiricalRisk.fisher(RISK, THETA, sample_targets=lambda out, g: Y, draws=1.5), "draws"
    ),
}

MATRIX: dict[str, dict[str, Bad]] = {
    "EmpiricalRisk": BUILDING | USING,
    "DifferenceHessian": {
        "a model for a risk": Bad(lambda: ns.DifferenceHessian(MODEL, THETA), "risk must be an EmpiricalRisk"),
        "a step of NaN": Bad(lambda: ns.DifferenceHessian(RISK, THETA, step=NAN), "step must be positive"),
    },
    "Columns": {
        "tensors for a data set": Bad(lambda: ns.Columns((X, Y), "x", "y"), "has no columns to read"),
        "no data set": Bad(lambda: ns.Columns(None, "x", "y"), "NoneType"),
    },
    "measure": {
        "a model for a risk": Bad(lambda: ns.measure(MODEL, THETA, batch_size=4), "risk must be an EmpiricalRisk"),
        "the class of a risk": Bad(
            lambda: ns.measure(ns.EmpiricalRisk, THETA, batch_size=4), "not the class EmpiricalRisk"
        ),
        "no θ": Bad(lambda: ns.measure(RISK, None, batch_size=4), "θ must be a flat torch.Tensor"),
        "replicas": Bad(lambda: ns.measure(RISK, THETA[None], batch_size=4), "θ must have shape (12,)"),
        "θ NaN": Bad(lambda: ns.measure(RISK, nan_at(THETA), batch_size=4, progress=False), "not finite"),
        "a batch of half": Bad(
            lambda: ns.measure(RISK, THETA, batch_size=0.5), "batch_size must be an int, not 0.5"
        ),
        "a batch as a float": Bad(lambda: ns.measure(RISK, THETA, batch_size=32.0), "32.0; write 32"),
        "more than there are": Bad(
            lambda: ns.measure(RISK, THETA, batch_size=11, replacement=False),
            "batch_size = 11 exceeds the 10 samples",
        ),
        "rtol in per cent": Bad(lambda: ns.measure(RISK, THETA, batch_size=4, rtol=5), "rtol"),
        "a seed as text": Bad(lambda: ns.measure(RISK, THETA, batch_size=4, seed="0"), "seed must be an int"),
        "a matrix for H": Bad(
            lambda: ns.measure(RISK, THETA, batch_size=4, hessian=torch.eye(12)), "DenseOperator(matrix)"
        ),
        "H of another size": Bad(
            lambda: ns.measure(RISK, THETA, batch_size=4, hessian=A, progress=False),
            "hessian is of 5 parameters, the risk has 12",
        ),
    },
    "measure_fast": {
        "seven samples": Bad(
            lambda: ns.measure_fast(build(data=(X[:7], Y[:7])), THETA, batch_size=4), "there are 7; use measure"
        ),
        "a closed form": Bad(lambda: ns.measure_fast(BOWL, START, batch_size=2), "measure"),
        "a generator for a seed": Bad(
            lambda: ns.measure_fast(RISK, THETA, batch_size=4, seed=torch.Generator()), "seed must be an int"
        ),
    },
    "layer_traces": {
        "one probe": Bad(lambda: ns.layer_traces(RISK, THETA, batch_size=4, probes=1), "probes = 1"),
        "a closed form": Bad(lambda: ns.layer_traces(BOWL, START, batch_size=2), "named parameters needs a model"),
    },
    "loss_budget": {
        "a rate of 0": Bad(lambda: ns.loss_budget(RISK, THETA, lr=0, batch_size=4), "lr must be positive, not 0"),
        "a rate of NaN": Bad(lambda: ns.loss_budget(RISK, THETA, lr=NAN, batch_size=4), "lr must be positive"),
        "a schedule for a rate": Bad(
            lambda: ns.loss_budget(RISK, THETA, lr=lambda step: 0.1, batch_size=4),
            "lr must be a number, not function",
        ),
    },
    "drawn_loss_change": {
        "one draw": Bad(lambda: ns.drawn_loss_change(RISK, THETA, lr=0.1, batch_size=4, draws=1), "draws = 1"),
        "an infinite rate": Bad(
            lambda: ns.drawn_loss_change(RISK, THETA, lr=math.inf, batch_size=4), "lr must be finite, not inf"
        ),
    },
    "relative_alignment": {
        "a closed form": Bad(lambda: ns.relative_alignment(BOWL, START), "model"),
        "no budget": Bad(lambda: ns.relative_alignment(RISK, THETA, max_products=1), "max_products must allow"),
    },
    "compare_noise_and_curvature": {
        "k of 0": Bad(lambda: ns.compare_noise_and_curvature(RISK, THETA, k=0), "k must be at least 1, not 0"),
        "a matrix for F": Bad(
            lambda: ns.compare_noise_and_curvature(RISK, THETA, fisher=torch.eye(12)), "DenseOperator(matrix)"
        ),
        "one operator": Bad(lambda: measurement.compare_operators({"A": A}), "two operators or more"),
        "a list of operators": Bad(lambda: measurement.compare_operators([A, A]), "operators"),
    },
    "expected_sharpness": {
        "δ below 0": Bad(lambda: ns.expected_sharpness(RISK, THETA, delta=-0.1), "delta must be positive"),
        "δ as text": Bad(lambda: ns.expected_sharpness(RISK, THETA, delta="0.1"), "delta must be a number"),
    },
    "layer_relative_sharpness": {
        "θ a list": Bad(lambda: ns.layer_relative_sharpness(RISK, [0.0]), "θ must be a flat torch.Tensor"),
        "draws of True": Bad(lambda: ns.layer_relative_sharpness(RISK, THETA, draws=True), "draws must be an int"),
    },
    "forecast_memory": {
        "no computation": Bad(lambda: ns.forecast_memory(RISK, None), "computation must be a function"),
        "a model": Bad(lambda: ns.forecast_memory(MODEL, lambda r, t: r.loss(t)), "risk must be an EmpiricalRisk"),
    },
    "trace": {
        "a matrix": Bad(lambda: ns.trace(torch.eye(3)), "of a matrix: DenseOperator(matrix)"),
        "rtol of NaN": Bad(lambda: ns.trace(A, rtol=NAN), "rtol must be positive, not nan"),
        "no columns": Bad(lambda: ns.trace(A, deflate=-1), "deflate must be at least 0"),
        "columns of another size": Bad(lambda: ns.trace(A, deflate=torch.ones(3, 1, dtype=F64)), "deflate must be"),
        "a single direction": Bad(lambda: ns.trace(A, deflate=torch.ones(5, dtype=F64)), "deflate must be columns"),
    },
    "squared_norm": {"a seed below 0": Bad(lambda: ns.squared_norm(A, seed=-1), "seed must be at least 0, not -1")},
    "diagonal": {"a budget of half": Bad(lambda: ns.diagonal(A, max_products=2.5), "max_products must be an int")},
    "product_trace": {
        "sizes that differ": Bad(lambda: ns.product_trace(A, SMALL), "sizes differ"),
        "an array": Bad(lambda: ns.product_trace(A, np.eye(5)), "not ndarray"),
    },
    "eigenpairs": {
        "none": Bad(lambda: ns.eigenpairs(A, 0), "k must lie in 1..5"),
        "more than there are": Bad(lambda: ns.eigenpairs(A, 6), "k must lie in 1..5"),
        "half": Bad(lambda: ns.eigenpairs(A, 1.5), "k must be an int, not 1.5"),
        "the other end by another name": Bad(lambda: ns.eigenpairs(A, 1, which="lowest"), "which must be one of"),
        "a matrix": Bad(lambda: ns.eigenpairs(torch.eye(3), 1), "DenseOperator(matrix)"),
    },
    "spectral_density": {
        "one probe": Bad(lambda: ns.spectral_density(A, probes=1), "probes = 1"),
        "a point": Bad(lambda: ns.spectral_density(A, points=1), "points must be at least 2"),
        "a width of NaN": Bad(lambda: ns.spectral_density(A, bandwidth=NAN), "bandwidth must be positive"),
    },
    "Estimate": {
        "a level in per cent": Bad(
            lambda: ns.Estimate(1.0, 0.1).interval(95), "level lies strictly between 0 and 1"
        ),
        "a level as text": Bad(lambda: ns.Estimate(1.0, 0.1).interval("95%"), "level"),
    },
    "SymmetricOperator": {
        "times a list": Bad(
            lambda: ns.SymmetricOperator.__matmul__(A, [1.0] * 5), "takes a torch.Tensor, not list"
        ),
        "times float32": Bad(lambda: ns.SymmetricOperator.__matmul__(A, torch.ones(5)), ".to(torch.float64)"),
        "times a short vector": Bad(lambda: ns.SymmetricOperator.__matmul__(A, torch.ones(3, dtype=F64)), "(5,)"),
        "draws of what is no covariance": Bad(
            lambda: ns.SymmetricOperator.sample(INDEFINITE, 1), "positive semi-definite"
        ),
        "an array for a matrix": Bad(lambda: linops.DenseOperator(np.eye(3)), "torch.Tensor, not ndarray"),
        "a matrix of whole numbers": Bad(lambda: linops.DenseOperator(torch.eye(3).long()), "int64"),
        "a matrix with a NaN": Bad(lambda: linops.DenseOperator(nan_at(torch.eye(3))), "not finite"),
        "a list for a diagonal": Bad(lambda: linops.DiagonalOperator([1.0, 2.0]), "torch.Tensor, not list"),
        "one replica of one": Bad(lambda: A.replica(0), "has no replica 0"),
    },
}
