"""The two conditions under which anisotropic noise beats isotropic noise, as measurable numbers."""

from __future__ import annotations

import math

from noisescape.scalars import check_number, check_whole


def projection_coefficient(top_noise: float, top_curvature: float, trace_h: float, trace_sigma: float) -> float:
    """a = u₁ᵀΣu₁·TrH/(λ₁·TrΣ): the noise along the top eigenvector, in units of its share of curvature.

    1 if Σ ∝ H; TrH/(D·λ₁), mean over largest eigenvalue, for isotropic noise. NaN without noise or curvature.

    Source: condition (2) of Zhu, Wu, Yu, Wu & Ma (2019).
    """
    figures = {
        "top_noise": top_noise,
        "top_curvature": top_curvature,
        "trace_h": trace_h,
        "trace_sigma": trace_sigma,
    }
    for name, value in figures.items():
        check_number(name, value)
    scale = top_curvature * trace_sigma
    return top_noise * trace_h / scale if scale else math.nan


def indicator_bounds(
    coefficient: float, top_curvature: float, trace_h: float, dimension: int
) -> tuple[float, float]:
    """The lower and the upper one of a·λ₁²·D/(TrH)² ≤ Tr(HΣ)/Tr(HΣ̄) ≤ D·λ₁/TrH, exact for PSD H.

    Rank-one noise along u₁ attains the upper bound. NaN where TrH is 0.

    >>> indicator_bounds(1.0, 2.0, 3.0, 2)
    (0.8888888888888888, 1.3333333333333333)
    """
    for name, value in (("coefficient", coefficient), ("top_curvature", top_curvature), ("trace_h", trace_h)):
        check_number(name, value)
    check_whole("dimension", dimension)
    if trace_h == 0:
        return math.nan, math.nan
    return coefficient * top_curvature**2 * dimension / trace_h**2, dimension * top_curvature / trace_h


def decay_exponent(top: float, next_after_k: float, dimension: int) -> float:
    """d with λ_{k+1} = λ₁·D^{−d}: condition (1) asks for d > ½ at some k ≪ D.

    NaN in one dimension and where λ₁ ≤ 0, where nothing is sharp; else infinite where λ_{k+1} ≤ 0.

    Source: condition (1) of Zhu, Wu, Yu, Wu & Ma (2019).

    >>> decay_exponent(100.0, 1.0, 10_000)
    0.5
    """
    for name, value in (("top", top), ("next_after_k", next_after_k)):
        check_number(name, value)
    check_whole("dimension", dimension)
    if dimension == 1 or not top > 0:
        return math.nan
    if next_after_k <= 0:
        return math.inf
    return math.log(top / next_after_k) / math.log(dimension)
