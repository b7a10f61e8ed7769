"""The dynamics that every oracle is applied to, and the problems they are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import noisescape as ns
from noisescape.experiments.published import PublishedHessian, PublishedLeading

BATCH = 3


def _samples() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(9, 3, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.4])
    return torch.cat([inputs, torch.randn(9, 1, generator=generator, dtype=torch.float64)], dim=1)


SAMPLES = _samples()


THETA = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)


def regression(device: str = "cpu") -> ns.EmpiricalRisk:
    """Linear regression in three parameters: correlated, anisotropic gradients; D small enough to enumerate."""

    def loss(theta: Tensor, sample: Tensor) -> Tensor:
        return 0.5 * ((theta * sample[..., :3]).sum(-1) - sample[..., 3]) ** 2

    return ns.EmpiricalRisk.from_sample_loss(
        loss, SAMPLES.to(device), torch.zeros(3, dtype=torch.float64, device=device)
    )


def regression_losses(theta: Tensor) -> Tensor:
    """Its losses for autograd, written independently of the risk's own derivative code."""
    return 0.5 * (SAMPLES[:, :3] @ theta - SAMPLES[:, 3]) ** 2


class Dense:
    """What a covariance is made of at one θ, by dense linear algebra."""

    def __init__(self, risk, theta):
        self.theta = theta
        rows = risk.per_sample_gradients(theta)
        centred = rows - rows.mean(0)
        number = len(rows)
        population = centred.T @ centred / number
        self.with_replacement = population / BATCH
        self.without = population * (number - BATCH) / (BATCH * (number - 1))
        self.hessian = torch.autograd.functional.hessian(lambda t: regression_losses(t).mean(), theta)
        self.gradient = rows.mean(0)
        self.eye = torch.eye(len(theta), dtype=theta.dtype)


def shuffled(sigma):
    order = torch.randperm(3, generator=torch.Generator().manual_seed(3))
    assert order.tolist() != [0, 1, 2]
    return sigma[order][:, order]


def with_trace_of(matrix, other):
    return matrix * other.trace() / matrix.trace()


@dataclass(frozen=True)
class Case:
    """A dynamics, its Σ by another way, and what it adds to ∇L but noise."""

    dynamics: ns.Dynamics
    covariance: Callable[[Dense], Tensor]
    drift: Callable[[Dense], Tensor] = lambda at: 0 * at.gradient


TABLE = {
    "gd": Case(ns.GD(), lambda at: 0 * at.eye),
    "gd-gradient-penalty": Case(
        ns.GDGradientPenalty(0.05), lambda at: 0 * at.eye, lambda at: 0.1 * at.hessian @ at.gradient
    ),
    "sgd": Case(ns.SGD(BATCH), lambda at: at.with_replacement),
    "sgd-without": Case(ns.SGD(BATCH, replacement=False), lambda at: at.without),
    "sgd-epoch": Case(ns.SGD(BATCH, sampling="epoch"), lambda at: at.without),
    "svag": Case(ns.SVAG(BATCH, ell=4), lambda at: 4 * at.with_replacement),
    "svag-without": Case(ns.SVAG(BATCH, ell=2, replacement=False), lambda at: 2 * at.without),
    "additive": Case(
        ns.Additive(regression().noise_covariance(torch.zeros(3, dtype=torch.float64), BATCH)),
        lambda at: Dense(regression(), torch.zeros(3, dtype=torch.float64)).with_replacement,
    ),
    "gld-constant": Case(ns.GLDConstant(0.7), lambda at: 0.49 * at.eye),
    "gld-dynamic": Case(ns.GLDDynamic(BATCH), lambda at: with_trace_of(at.eye, at.with_replacement)),
    "gld-diagonal": Case(ns.GLDDiagonal(BATCH), lambda at: torch.diag(at.with_replacement.diagonal())),
    "gld-diagonal-without": Case(
        ns.GLDDiagonal(BATCH, replacement=False), lambda at: torch.diag(at.without.diagonal())
    ),
    "gld-leading": Case(ns.GLDLeading(BATCH, k=2), lambda at: best_part(at.with_replacement, 2)),
    "gld-leading-rescaled": Case(
        ns.GLDLeading(BATCH, k=1, rescale=True),
        lambda at: with_trace_of(best_part(at.with_replacement, 1), at.with_replacement),
    ),
    "gld-hessian": Case(
        ns.GLDHessian(BATCH, k=2), lambda at: with_trace_of(best_part(at.hessian, 2), at.with_replacement)
    ),
    "gld-top-eigenvector": Case(
        ns.GLDTopEigenvector(BATCH), lambda at: with_trace_of(best_part(at.hessian, 1), at.with_replacement)
    ),
    "gld-full": Case(ns.GLDFull(BATCH), lambda at: at.with_replacement),
    "gld-full-without": Case(ns.GLDFull(BATCH, replacement=False), lambda at: at.without),
    "gld-shuffled": Case(ns.GLDShuffled(BATCH, shuffle_seed=3), lambda at: shuffled(at.with_replacement)),
    "gld-shuffled-within-layers": Case(
        # a closed form is one layer
        ns.GLDShuffledWithinLayers(BATCH, shuffle_seed=3),
        lambda at: shuffled(at.with_replacement),
    ),
    "yoked diagonal": Case(
        ns.Yoked(ns.GLDDiagonal(BATCH), torch.full((20,), 5.0)),
        lambda at: torch.diag(at.with_replacement.diagonal()) * 5.0 / at.with_replacement.trace(),
    ),
    "yoked sgd": Case(
        ns.Yoked(ns.SGD(BATCH), torch.full((20,), 5.0)),
        lambda at: at.with_replacement * 5.0 / at.with_replacement.trace(),
    ),
    "yoked shuffled": Case(
        ns.Yoked(ns.GLDShuffled(BATCH, shuffle_seed=3), torch.full((20,), 5.0)),
        lambda at: shuffled(at.with_replacement) * 5.0 / at.with_replacement.trace(),
    ),
    "matched": Case(
        ns.MatchedTrace(ns.GLDDiagonal(BATCH), 5.0),
        lambda at: torch.diag(at.with_replacement.diagonal()) * 5.0 / at.with_replacement.trace(),
    ),
}
"""Every dynamics that the oracles are applied to."""
ALL = {name: case.dynamics for name, case in TABLE.items()}


GAUSSIAN = {
    "constant": ns.GLDConstant(0.7),
    "dynamic": ns.GLDDynamic(BATCH),
    "dynamic, refreshed": ns.GLDDynamic(BATCH, refresh=3),
    "dynamic from batches": ns.GLDDynamic(BATCH, batches=4, refresh=2),
    "diagonal": ns.GLDDiagonal(BATCH),
    "diagonal from batches": ns.GLDDiagonal(BATCH, batches=4, refresh=2),
    "leading, sketched": ns.GLDLeading(BATCH, k=3, refresh=2),
    "leading, rescaled": ns.GLDLeading(BATCH, k=3, refresh=2, rescale=True),
    "hessian, followed": ns.GLDHessian(BATCH, k=3, refresh=2),
    "top eigenvector, followed": ns.GLDTopEigenvector(BATCH, refresh=2),
    "published leading": PublishedLeading(BATCH, k=3, refresh=3),
    "published hessian": PublishedHessian(BATCH, k=3, refresh=2),
}


SPECTRA = {"flat": 0.0, "decaying": 1.0}


def gradients_of(count, dimension, decay, dtype=torch.float64):
    scale = torch.arange(1, dimension + 1, dtype=dtype) ** -decay
    return scale * torch.randn(count, dimension, generator=torch.Generator().manual_seed(4), dtype=dtype)


def with_gradients(gradients, hessian=None, **options):
    """Per-sample gradients gradients[n] + Hθ at every θ."""
    dimension = gradients.shape[-1]
    hessian = torch.eye(dimension, dtype=gradients.dtype) if hessian is None else hessian

    def loss(theta, gradient):
        return (theta * gradient).sum(-1) + 0.5 * ((theta @ hessian) * theta).sum(-1)

    start = torch.zeros(dimension, dtype=gradients.dtype)
    return ns.EmpiricalRisk.from_sample_loss(loss, gradients, start, **options)


def covariance_of(gradients):
    centred = gradients.double() - gradients.double().mean(0)
    return centred.T @ centred / len(gradients) / BATCH


def best_part(matrix, k):
    """The best part of rank k of a positive matrix, by LAPACK."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors[:, -k:] * values[-k:] @ vectors[:, -k:].T


def assert_same_matrix(found, wanted, rtol):
    assert (found.double() - wanted).norm() <= rtol * wanted.norm()


AT = Dense(regression(), THETA)
WANTED = {name: case.covariance(AT) for name, case in TABLE.items()}
NOISY = [name for name, wanted in WANTED.items() if wanted.any()]
MATCHED_TO_SIGMA = {
    name: sigma.trace()
    for name, wanted in WANTED.items()
    for sigma in (AT.with_replacement, AT.without)
    if torch.isclose(wanted.trace(), sigma.trace(), rtol=1e-9, atol=0)
}
"""Those whose Σ has the trace of the minibatch noise, and that trace."""
