"""Every public call of a risk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import noisescape as ns
from cases import F64
from internals import held_data
from noisescape.risk import DifferenceHessian, fingerprint
from noisescape.risk.gradients import (
    factored_chunks,
    factored_gradients,
    fits_gradients,
    per_sample_square_norms,
    row_chunks,
)
from noisescape.risk.passes import (
    ggn_draws,
    ggn_forms,
    ggnvp,
    gradient_graphs,
    hvp_by_forward_mode,
    hvp_through,
    unchecked_losses,
)

Call = Callable[[ns.EmpiricalRisk, Tensor, Tensor], object]


def logits_of(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits.movedim(-1, 1)


def total(outputs: Any, targets: Tensor) -> Tensor:
    return logits_of(outputs).flatten(1).sum(1)


def drawn(outputs: Any, generator: torch.Generator) -> Tensor:
    return logits_of(outputs).argmax(1)


GENERATOR = torch.Generator()
CALLS: dict[str, Call] = {
    "parameters": lambda risk, theta, block: risk.parameters(),
    "state_dict": lambda risk, theta, block: risk.state_dict(theta),
    "losses": lambda risk, theta, block: risk.losses(theta),
    "losses, replicas": lambda risk, theta, block: risk.losses(torch.stack([theta, theta + 1e-3])),
    "unchecked_losses": lambda risk, theta, block: unchecked_losses(risk, theta),
    "loss": lambda risk, theta, block: risk.loss(theta),
    "metric": lambda risk, theta, block: risk.metric(theta, total),
    "gradient": lambda risk, theta, block: risk.gradient(theta),
    "gradient, replicas": lambda risk, theta, block: risk.gradient(torch.stack([theta, theta + 1e-3])),
    "vjp": lambda risk, theta, block: risk.vjp(theta, torch.ones(6, 2, dtype=F64)),
    "minibatch_gradient": lambda risk, theta, block: risk.minibatch_gradient(theta, torch.tensor([0, 3, 0])),
    "jvp": lambda risk, theta, block: risk.jvp(theta, block),
    "per_sample_gradients": lambda risk, theta, block: risk.per_sample_gradients(theta),
    "per_sample_gradients, chosen": lambda risk, theta, block: risk.per_sample_gradients(
        theta, torch.tensor([2, 0])
    ),
    "row_chunks": lambda risk, theta, block: list(row_chunks(risk, theta)),
    "per_sample_square_norms": lambda risk, theta, block: per_sample_square_norms(risk, theta),
    "factored_gradients": lambda risk, theta, block: factored_gradients(risk, theta),
    "factored_chunks": lambda risk, theta, block: list(factored_chunks(risk, theta)),
    "fits_gradients": lambda risk, theta, block: fits_gradients(risk, theta),
    "gradient_graphs": lambda risk, theta, block: list(gradient_graphs(risk, theta)),
    "hvp_through": lambda risk, theta, block: hvp_through(risk, gradient_graphs(risk, theta), block),
    "hvp": lambda risk, theta, block: risk.hvp(theta, block),
    "DifferenceHessian": lambda risk, theta, block: DifferenceHessian(risk, theta) @ block,
    "fingerprint": lambda risk, theta, block: fingerprint(risk),
    "hvp_by_forward_mode": lambda risk, theta, block: hvp_by_forward_mode(risk, theta, block),
    "hessian, a vector": lambda risk, theta, block: risk.hessian(theta) @ block[:, 0],
    "hessian": lambda risk, theta, block: risk.hessian(theta) @ block,
    "noise_covariance": lambda risk, theta, block: risk.noise_covariance(theta, 3) @ block,
    "empirical_fisher": lambda risk, theta, block: risk.empirical_fisher(theta).sample(2),
    "fisher, sampled": lambda risk, theta, block: risk.fisher(theta, sample_targets=drawn) @ block,
    "with_data": lambda risk, theta, block: risk.with_data(held_data(risk)).loss(theta),
    "to": lambda risk, theta, block: risk.to(torch.float32).gradient(theta.float()),
    "trace": lambda risk, theta, block: ns.trace(risk.hessian(theta), rtol=0.5),
    "diagonal": lambda risk, theta, block: ns.diagonal(risk.hessian(theta), rtol=0.5),
    "product_trace": lambda risk, theta, block: ns.product_trace(
        risk.hessian(theta), risk.noise_covariance(theta, 3), rtol=0.5
    ),
    "eigenpairs": lambda risk, theta, block: ns.eigenpairs(risk.hessian(theta), 2, tol=0.1),
    "expected_sharpness": lambda risk, theta, block: ns.expected_sharpness(risk, theta, draws=2),
    "measure": lambda risk, theta, block: ns.measure(risk, theta, batch_size=3, k=2, rtol=0.5),
    "simulate, SGD": lambda risk, theta, block: ns.simulate(
        risk, ns.SGD(2), theta, lr=0.01, steps=3, progress=False
    ),
    "simulate, GLD diagonal": lambda risk, theta, block: ns.simulate(
        risk, ns.GLDDiagonal(2), theta, lr=0.01, steps=2, replicas=2, progress=False
    ),
    "forecast_memory": lambda risk, theta, block: ns.forecast_memory(
        risk, lambda risk, theta: risk.gradient(theta)
    ),
}
OF_TENSOR_OUTPUTS: dict[str, Call] = {
    "accuracy": lambda risk, theta, block: risk.accuracy(theta),
    "gauss_newton": lambda risk, theta, block: risk.gauss_newton(theta) @ block,
    "ggnvp": lambda risk, theta, block: ggnvp(risk, theta, block[:, 0]),
    "ggn_forms": lambda risk, theta, block: ggn_forms(risk, theta, block),
    "ggn_draws": lambda risk, theta, block: ggn_draws(risk, theta, 2, GENERATOR),
    "fisher": lambda risk, theta, block: risk.fisher(theta) @ block,
}
INERT = {"device", "dimension", "dtype", "from_losses", "from_sample_loss", "sample_count", "shard"}
"""Settings, and what the calls above go through."""
