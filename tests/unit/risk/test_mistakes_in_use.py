"""What a newcomer gets wrong in using a risk, and the error that says what to do: one row a mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, F64, bowl_risk
from mistakes import CE, X, Y, build, with_a_nan
from noisescape.errors import NonFiniteLossError
from noisescape.risk import EmpiricalRisk

MLP = CASES["mlp cross-entropy"]


class TwoOutputs(nn.Linear):
    def forward(self, x: Tensor):
        outputs = super().forward(x)
        return outputs, outputs


def _risk_on_shrunken_data() -> EmpiricalRisk:
    batches = [(X[:5], Y[:5]), (X[5:8], Y[5:8]), (X[8:], Y[8:])]
    risk = build(data=batches, memory_budget=1)
    batches.pop()
    return risk


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
        lambda: with_a_nan().loss(torch.ones(12, dtype=F64)),
        NonFiniteLossError,
        r"1 of 10 losses are not finite, the first that of sample 4 \(nan\)",
    ),
    "diverged θ": (
        lambda: bowl_risk().losses(torch.full((3,), 1e200, dtype=F64)),
        NonFiniteLossError,
        r"6 of 6 losses are not finite.*smaller learning rate",
    ),
    "weights of the wrong length": (
        lambda: RISK.vjp(THETA, torch.ones(7, dtype=F64)),
        ValueError,
        r"\(11,\), not \(7,\)",
    ),
    "block of weights of the wrong length": (
        lambda: RISK.vjp(THETA, torch.ones(7, 2, dtype=F64)),
        ValueError,
        r"\(11, 2\), not \(7, 2\)",
    ),
    "weights of too many dimensions": (
        lambda: RISK.vjp(THETA, torch.ones(11, 2, 11, dtype=F64)),
        ValueError,
        r"weights must have",
    ),
    "direction of the wrong length": (
        lambda: RISK.hvp(THETA, THETA[:-1]),
        ValueError,
        r"directions must have shape \(31,\).*\(30,\)",
    ),
    "one direction for many replicas": (
        lambda: RISK.jvp(THETA.repeat(2, 1), THETA),
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
        r"at least one sample is needed",
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
        r"a few samples at a time",
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


def test_b_equal_to_n_without_replacement_has_no_noise() -> None:
    covariance = RISK.noise_covariance(THETA, 11, replacement=False)
    assert torch.equal(covariance.dense(), torch.zeros(31, 31, dtype=F64))


@pytest.mark.parametrize("name", USE)
def test_a_mistake_in_use_gets_an_error_that_names_it_and_the_mend(name: str) -> None:
    make, error, message = USE[name]
    with pytest.raises(error, match=message):
        make()
