"""Every figure of a measurement from dense matrices, and quadratics to measure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cases import F64, Case, normal, symmetric

FIGURES = (
    "loss",
    "gradient_norm",
    "trace_h",
    "trace_sigma",
    "trace_h_sigma",
    "isotropic_reference",
    "anisotropy",
    "lower_bound",
    "upper_bound",
    "projection_coefficient",
    "decay_exponent",
    "alignment",
    "noise_scale",
    "curvature_noise_scale",
    "smallest_eigenvalue",
)


def reference(
    loss: float,
    gradients: Tensor,
    hessian: Tensor,
    batch_size: int,
    *,
    replacement: bool = True,
    k: int = 20,
) -> dict[str, float]:
    """Every figure from dense matrices, written as in its definition."""
    number, dimension = gradients.shape
    mean = gradients.mean(0)
    per_sample = (gradients - mean).T @ (gradients - mean) / number
    share = 1 if replacement else (number - batch_size) / (number - 1)
    sigma = per_sample * share / batch_size
    values, vectors = torch.linalg.eigh(hessian)
    values, first = values.flip(0), vectors[:, -1]
    k = min(k, dimension - 1)
    figures = {
        "loss": loss,
        "gradient_norm": mean.norm(),
        "trace_h": hessian.trace(),
        "trace_sigma": sigma.trace(),
        "trace_h_sigma": (hessian @ sigma).trace(),
        "isotropic_reference": hessian.trace() * sigma.trace() / dimension,
        "anisotropy": (hessian @ sigma).trace() * dimension / (hessian.trace() * sigma.trace()),
        "upper_bound": dimension * values[0] / hessian.trace(),
        "projection_coefficient": first @ sigma @ first * hessian.trace() / (values[0] * sigma.trace()),
        "lower_bound": first @ sigma @ first * values[0] * dimension / (sigma.trace() * hessian.trace()),
        "alignment": (hessian @ sigma).trace() / (hessian.norm() * sigma.norm()),
        "smallest_eigenvalue": values[-1],
        "noise_scale": per_sample.trace() / (mean @ mean),
        "curvature_noise_scale": (hessian @ per_sample).trace() / (mean @ hessian @ mean),
    }
    found = {name: float(value) for name, value in figures.items()}
    if dimension > 1:
        after = float(values[k])
        found["decay_exponent"] = (
            math.log(float(values[0]) / after) / math.log(dimension) if after > 0 else math.inf
        )
    return found


def of_case(case: Case, batch_size: int, **options: object) -> dict[str, float]:
    loss = float(case.losses(case.theta).mean())
    return reference(loss, case.gradients(), case.hessian(), batch_size, **options)


EIGENVALUES = torch.tensor([5.0, 2.0, 1.0, 0.3, 0.05, 0.0], dtype=F64)
CURVATURE = symmetric(6, EIGENVALUES, seed=7)
HERE = normal(6, seed=8)
