"""The dynamics that every oracle is applied to, and the problems they are tried on."""

from __future__ import annotations

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


ALL = {
    "gd": ns.GD(),
    "sgd": ns.SGD(BATCH),
    "sgd-without": ns.SGD(BATCH, replacement=False),
    "gld-constant": ns.GLDConstant(0.7),
    "gld-dynamic": ns.GLDDynamic(BATCH),
    "gld-diagonal": ns.GLDDiagonal(BATCH),
    "gld-diagonal-without": ns.GLDDiagonal(BATCH, replacement=False),
    "gld-leading": ns.GLDLeading(BATCH, k=2),
    "gld-leading-rescaled": ns.GLDLeading(BATCH, k=1, rescale=True),
    "gld-hessian": ns.GLDHessian(BATCH, k=2),
    "gld-top-eigenvector": ns.GLDTopEigenvector(BATCH),
    "gld-full": ns.GLDFull(BATCH),
    "gld-full-without": ns.GLDFull(BATCH, replacement=False),
    "gld-shuffled": ns.GLDShuffled(BATCH, shuffle_seed=3),
    "matched": ns.MatchedTrace(ns.GLDDiagonal(BATCH), 5.0),
}


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


def regression() -> ns.EmpiricalRisk:
    """Linear regression in three parameters: correlated, anisotropic gradients; D small enough to enumerate."""

    def loss(theta: Tensor, sample: Tensor) -> Tensor:
        return 0.5 * ((theta * sample[..., :3]).sum(-1) - sample[..., 3]) ** 2

    return ns.EmpiricalRisk.from_sample_loss(loss, SAMPLES, torch.zeros(3, dtype=torch.float64))


def regression_losses(theta: Tensor) -> Tensor:
    """Its losses for autograd, written independently of the risk's own derivative code."""
    return 0.5 * (SAMPLES[:, :3] @ theta - SAMPLES[:, 3]) ** 2


def expected_covariance(name, risk, theta):
    """Σ written down from the table of dynamics, by dense linear algebra."""
    rows = risk.per_sample_gradients(theta)
    centred = rows - rows.mean(0)
    number, dimension = rows.shape
    population = centred.T @ centred / number
    without = (number - BATCH) / (BATCH * (number - 1))
    sigma = population * (without if name.endswith("without") else 1 / BATCH)
    hessian = torch.autograd.functional.hessian(lambda t: regression_losses(t).mean(), theta)
    values, vectors = torch.linalg.eigh(hessian)
    noise_values, noise_vectors = torch.linalg.eigh(sigma)
    eye = torch.eye(dimension, dtype=theta.dtype)
    if name == "gd":
        return 0 * eye
    if name.startswith(("sgd", "gld-full")):
        return sigma
    if name == "gld-shuffled":
        order = torch.randperm(3, generator=torch.Generator().manual_seed(3))
        assert order.tolist() != [0, 1, 2]
        permutation = eye[order]
        return permutation @ sigma @ permutation.T
    if name == "gld-constant":
        return 0.49 * eye
    if name == "gld-dynamic":
        return sigma.trace() / dimension * eye
    if name.startswith("gld-diagonal"):
        return torch.diag(sigma.diagonal())
    if name == "gld-leading":
        return noise_vectors[:, -2:] * noise_values[-2:] @ noise_vectors[:, -2:].T
    if name == "gld-leading-rescaled":
        return sigma.trace() * torch.outer(noise_vectors[:, -1], noise_vectors[:, -1])
    if name == "gld-hessian":
        best = vectors[:, -2:] * values[-2:] @ vectors[:, -2:].T
        return best * sigma.trace() / best.trace()
    if name == "gld-top-eigenvector":
        return sigma.trace() * torch.outer(vectors[:, -1], vectors[:, -1])
    assert name == "matched"
    return torch.diag(sigma.diagonal()) * 5.0 / sigma.trace()


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
