"""Mean-square stability of SGD: whether a small deviation from a minimum dies out in the mean of its square."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from noisescape.errors import FailedError, InvalidValueError
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.risk.arguments import check_theta
from noisescape.risk.gradient_covariance import covariance_factor
from noisescape.risk.sample_curvature import SampleGaussNewton, SampleHessians
from noisescape.scalars import check_positive, check_seed, check_whole
from noisescape.theory.directions import (
    Curvature,
    directions_beyond,
    directions_elsewhere,
    first_directions,
    seen,
    seen_also,
)
from noisescape.theory.second_moments import Forms, growth, worst_deviation

NUDGE = 1e-3
"""Share of a known worst deviation that new directions begin with."""
STEADY = 2
"""Rounds that must change nothing before a threshold counts as settled."""
RESTARTS = 3
"""Times that it must settle at the same value, each time with directions from elsewhere, before it is believed."""


@dataclass(frozen=True)
class MeanSquareThreshold:
    """From which learning rate on SGD leaves a minimum at which each sample's curvature is H_n.

    Attributes:
        threshold: η*, below which the mean square of a small deviation dies out.
        descent: 2/λ₁ of H: the same for gradient descent, where B = N.
        change: what the last round still lowered η* by, relative: it is found from above.
        directions: how many directions it was found among.
        projected: WᵀH_nW in those, float64.
        sampling: p, 1/B with replacement, (N−B)/(B(N−1)) without.
    """

    threshold: float
    descent: float
    change: float
    directions: int
    projected: Forms = field(repr=False)
    sampling: float

    def growth(self, lr: float) -> float:
        """At least by what factor a step at this η multiplies the mean square of the worst deviation.

        The spectral radius of T(M) = M − η(HM + MH) + η²[(1−p)HMH + p·mean H_nMH_n] among the directions found:
        1 at η*. The worst deviation at an η far from η* may lie in others.
        """
        return growth(self.projected, self.sampling, lr)


def mean_square_threshold(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    batch_size: int,
    replacement: bool = True,
    curvature: Curvature = "gauss-newton",
    rtol: float = 1e-3,
    max_directions: int = 192,
    seed: int = 0,
) -> MeanSquareThreshold:
    """η*, the learning rate up to which SGD is stable in mean square at a minimum.

    Linearised there, δ ← (I − ηH_b)δ with H_b the mean of a batch's H_n, and M = E δδᵀ goes to
    T(M) = M − η(HM + MH) + η²[(1−p)HMH + p·mean H_nMH_n]. It dies out for η < η* = 2/max ⟨M, D M⟩/⟨M, C M⟩ over
    symmetric M, with C M = ½(HM + MH) and D M = (1−p)HMH + p·mean H_nMH_n. η* ≤ 2/λ₁, reached by B = N without
    replacement.

    No (D, D) matrix is formed: the quotient is maximised over M = WXWᵀ, W some directions, which grow by those that
    D M has beyond them until nothing changes. Every W gives an upper bound of η*. Samples that share no directions
    with those in W, rare features for one, may still bound it lower: the search is begun again, several times, from
    the most curved samples and from random directions outside of W. That finds what is strong; it is no proof.

    Left out is what is not linear, and that gradients of single samples which are not 0 at θ add noise at any η:
    below η* that makes the loss settle higher, not leave.

    Args:
        risk: L.
        theta: a minimum, (D,).
        batch_size: B.
        replacement: the sampling law of the batches.
        curvature: of a sample: its Gauss–Newton matrix, PSD, or its Hessian. They agree where samples are fitted.
        rtol: relative change of η* by a round of further directions that counts as none.
        max_directions: m at most; N·m² numbers are held.
        seed: of the directions that are tried first.

    Raises:
        ValueError: B out of range; Hessians at a θ that is no minimum; a model without curvature.
        FailedError: η* still changed when ``max_directions`` were reached.

    Source: arXiv 2306.07850 for the threshold in closed form; Wu, Ma & E (2018) for a sufficient condition.

    >>> from noisescape.theory import landscapes
    >>> bowl = landscapes.quadratic(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> found = mean_square_threshold(bowl, torch.zeros(2), batch_size=1, curvature="hessian")
    >>> round(found.threshold, 4), round(found.descent, 4)
    (0.5, 0.5)
    """
    risk, theta = in_operator_precision(risk, theta)
    sampling = covariance_factor(batch_size, risk.sample_count, replacement=replacement)
    check_positive("rtol", rtol)
    check_whole("max_directions", max_directions)
    check_seed(seed)
    _check_curvature(curvature)
    samples = SampleHessians(risk, theta) if curvature == "hessian" else SampleGaussNewton(risk, theta)
    basis = first_directions(risk, theta, samples, curvature, seed)
    projected = seen(samples, basis)
    bounds: list[float] = []
    believed, times = math.inf, 0
    moment: Tensor | None = None
    generator = torch.Generator(theta.device).manual_seed(seed + 1)
    while True:
        quotient, moment = worst_deviation(projected, sampling, moment)
        bounds.append(2 / quotient)
        changes = [before / after - 1 for before, after in itertools.pairwise(bounds[-STEADY - 1 :])]
        steady = len(changes) == STEADY and max(changes) <= rtol
        new = None if steady else directions_beyond(samples, basis, projected, moment)
        if new is None:
            times = times + 1 if believed / bounds[-1] - 1 <= rtol else 0
            believed = bounds[-1]
            scale = float(projected.mean.diagonal().max())
            new = None if times >= RESTARTS else directions_elsewhere(samples, basis, scale, generator)
            bounds = bounds if new is None else bounds[-1:]
        if new is None:
            descent = 2 / float(torch.linalg.eigvalsh(projected.mean)[-1])
            change = changes[-1] if steady else 0.0
            threshold = min(bounds[-1], descent)  # they are the same at p = 0
            return MeanSquareThreshold(threshold, descent, change, basis.shape[1], projected, sampling)
        if basis.shape[1] + new.shape[1] > max_directions:
            changed = f"still changed by {max(changes):.1e}" if changes else "is not known to have settled"
            raise FailedError(
                f"the threshold of mean-square stability, at most {bounds[-1]:.4g}, {changed} among "
                f"{basis.shape[1]} directions: raise max_directions or rtol"
            )
        projected = seen_also(samples, projected, basis, new)
        basis = torch.cat([basis, new], dim=1)
        moment = torch.nn.functional.pad(moment, (0, new.shape[1], 0, new.shape[1]))
        moment = moment + NUDGE * moment.trace() * torch.eye(len(moment), dtype=moment.dtype)


def mean_square_bound(
    risk: EmpiricalRisk,
    theta: Tensor,
    direction: Tensor,
    *,
    batch_size: int,
    replacement: bool = True,
    curvature: Curvature = "gauss-newton",
) -> float:
    """An upper bound of η*, from one direction v alone: 2vᵀHv/[(1−p)(vᵀHv)² + p·mean (vᵀH_nv)²] for ‖v‖ = 1.

    Args:
        risk: L.
        theta: where, (D,).
        direction: v, (D,), of any length but 0.
        batch_size: B.
        replacement: the sampling law.
        curvature: what H_n is, as for :func:`mean_square_threshold`.

    Raises:
        ValueError: no direction, or one along which the loss does not curve upwards.
    """
    risk, theta = in_operator_precision(risk, theta)
    sampling = covariance_factor(batch_size, risk.sample_count, replacement=replacement)
    _check_curvature(curvature)
    check_theta(direction, risk.dimension, direction.dtype, risk.device, replicas=False, name="direction")
    samples = SampleHessians(risk, theta) if curvature == "hessian" else SampleGaussNewton(risk, theta)
    unit = torch.nn.functional.normalize(direction.to(theta), dim=0)
    curvatures = samples.forms(unit[:, None], unit[:, None]).double().flatten()
    along = float(curvatures.mean())
    if not along > 0:
        raise InvalidValueError(
            f"the loss has curvature {along:.3g} along this direction: no bound follows from it"
        )
    return 2 * along / ((1 - sampling) * along**2 + sampling * float(curvatures.square().mean()))


def _check_curvature(curvature: str) -> None:
    if curvature not in get_args(Curvature):
        raise InvalidValueError(f"curvature must be one of {', '.join(get_args(Curvature))}, not {curvature!r}")
