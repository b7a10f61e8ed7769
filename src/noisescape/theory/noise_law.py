"""The law of minibatch noise beyond its covariance: how heavy its tails are, and what epochs do to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError
from noisescape.risk import EmpiricalRisk, in_operator_precision
from noisescape.risk.arguments import check_risk
from noisescape.risk.gradient_covariance import covariance_factor
from noisescape.risk.gradients import gradient_columns
from noisescape.scalars import check_real, check_seed, check_whole

MOST_NUMBERS = 2**24
"""Of the draws held at once."""
SHORTEST = 64
"""Numbers in a row of which a stable index is taken."""
LEAST = {"draws": 256, "coordinates": 128, "nulls": 19}
"""Of each a tail test needs so many."""


@dataclass(frozen=True)
class AgainstNull:
    """A statistic of minibatch noise beside the same of Gaussian noise of the same covariance.

    Attributes:
        value: of minibatch noise.
        null: its mean over Gaussian data sets of the same size.
        low, high: between which 95 % of these lie.
        p: two-sided, from the rank among them; no smaller than 2/(nulls + 1).
    """

    value: float
    null: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class TailTest:
    """How heavy the tails of minibatch noise are at one θ, along two axes, each beside its Gaussian null.

    Over iterations: the law of one coordinate of ε from batch to batch, averaged over coordinates. Over
    coordinates: the spread of one ε over the parameters, averaged over batches; coordinates of unlike variance
    make that heavy whatever the law, and so they do in the null.

    Attributes:
        kurtosis_over_iterations: E z⁴/(E z²)² − 3, 0 for a Gaussian.
        kurtosis_over_coordinates: the same.
        index_over_iterations: of stability, 2 for a Gaussian, below 2 for α-stable laws, by :func:`stable_index`.
        index_over_coordinates: the same.
    """

    kurtosis_over_iterations: AgainstNull
    kurtosis_over_coordinates: AgainstNull
    index_over_iterations: AgainstNull
    index_over_coordinates: AgainstNull


def tail_test(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    batch_size: int,
    replacement: bool = True,
    draws: int = 1000,
    coordinates: int = 200,
    nulls: int = 99,
    seed: int = 0,
) -> TailTest:
    """Is minibatch noise heavier-tailed than Gaussian noise of its covariance?

    Both are made of the same per-sample gradients, ε = Gᵀw: w the counts of a batch over B less 1/N, or Gaussian
    with the covariance of those, as :class:`~noisescape.GLDFull` has it.

    Args:
        risk: L.
        theta: where, (D,).
        batch_size: B.
        replacement: the sampling law.
        draws: iterations, all at θ.
        coordinates: random ones that are looked at, no more than D; N times as many numbers are held.
        nulls: Gaussian data sets.
        seed: of all three.

    Raises:
        ValueError: B out of range; fewer than 256 draws, 128 coordinates or 19 nulls; or fewer than 64
            coordinates are left without those whose gradient is the same for all samples.

    Sources: heavy tails over coordinates taken for those of the law, arXiv 1901.06053; the objection, 1910.09626.
    """
    check_risk(risk)
    check_seed(seed)
    for name, given in (("draws", draws), ("coordinates", coordinates), ("nulls", nulls)):
        check_whole(name, given)
        if given < LEAST[name]:
            raise InvalidValueError(f"{name} = {given}, but at least {LEAST[name]} are needed")
    risk, theta = in_operator_precision(risk, theta)
    covariance_factor(batch_size, risk.sample_count, replacement=replacement)  # refuses a B that does not fit
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(risk.dimension, generator=generator)[:coordinates].to(theta.device)
    columns = gradient_columns(risk, theta, picked).double().cpu()
    columns = columns - columns.mean(0)
    columns = columns[:, columns.square().mean(0) > 0]
    if columns.shape[1] < SHORTEST:
        raise InvalidValueError(
            f"only {columns.shape[1]} of the coordinates looked at have noise, and {SHORTEST} are needed: raise "
            "coordinates, or take a larger model"
        )
    count = len(columns)
    held = max(1, MOST_NUMBERS // count)

    def batches(size: int) -> Tensor:
        if replacement:
            drawn = torch.randint(count, (size, batch_size), generator=generator)
        else:
            drawn = torch.rand(size, count, generator=generator).topk(batch_size, largest=False).indices
        ones = torch.ones(size, batch_size, dtype=torch.float64)
        return torch.zeros(size, count, dtype=torch.float64).scatter_add_(1, drawn, ones) / batch_size

    def gaussian(size: int) -> Tensor:
        # no statistic depends on the size of the noise, nor, as columns are centred, on the mean of the weights
        return torch.randn(size, count, generator=generator, dtype=torch.float64)

    def noise(weights: Callable[[int], Tensor]) -> Tensor:
        sizes = [min(held, draws - start) for start in range(0, draws, held)]
        return torch.cat([weights(size) @ columns for size in sizes])

    found = _statistics(noise(batches))
    under_null = torch.stack([_statistics(noise(gaussian)) for _ in range(nulls)])
    return TailTest(*(_against(float(value), null) for value, null in zip(found, under_null.T, strict=True)))


def stable_index(samples: Tensor) -> float:
    """α of a symmetric α-stable law, from (n,) or from rows of one law, (R, n): 2 for a Gaussian, 1 for Cauchy's.

    With K₁ = ⌊√n⌋ numbers in a group and Y the sums of groups, 1/α = (E log|Y| − E log|X|)/log K₁: sums of K₁ are
    K₁^{1/α} times as wide. Rows are averaged before the inverse is taken, whose mean of one row does not exist. Of
    a law that is not stable it is no index of its tail, only how sums of so many grow.

    Raises:
        ValueError: fewer than 64 numbers in a row, where the law's bias is larger than it says; exact zeros, which
            have no logarithm.

    Source: Mohammadi, Mohammadpour & Ogata (2015).
    """
    if not isinstance(samples, Tensor) or not samples.ndim:
        raise InvalidTypeError(f"samples must be a tensor (n,) or (R, n), not {type(samples).__name__}")
    if not bool(torch.isfinite(samples).all()):
        raise InvalidValueError("samples holds numbers that are not finite")
    count = samples.shape[-1]
    if count < SHORTEST:
        raise InvalidValueError(f"a stable index needs rows of at least {SHORTEST} numbers, not {count}")
    size = math.isqrt(count)
    used = samples[..., : size * (count // size)].double()
    sums = used.unflatten(-1, (count // size, size)).sum(-1)
    zeros = int((used == 0).sum() + (sums == 0).sum())
    if zeros:
        raise InvalidValueError(
            f"{zeros} of the numbers, or of their sums, are exactly 0, which has no logarithm: a law with weight "
            "at 0, or on a lattice, has no stable index"
        )
    growth = sums.abs().log().mean() - used.abs().log().mean()
    return math.log(size) / float(growth)


def epoch_variance(lr: float, curvature: float, batches: int) -> float:
    """Of θ along a direction of this curvature, at the ends of epochs, over that which independent batches keep.

    On a quadratic with noise that does not depend on θ, θ ← aθ − ηε with a = 1 − ηλ. Independent steps keep
    η²σ²/(1 − a²). The M batches of an epoch have E ε_sε_t = −σ²/(M−1), and so keep η²σ²[S₂ + (S₂ − S₁²)/(M−1)]/(1
    − a^{2M}), S_q = Σ_{j<M} a^{qj}. Where ηλM ≪ 1 an epoch's noise nearly sums to 0, and nothing is kept: flat
    directions are quieter than the spectrum of Σ says. The ratio is dimensionless.

    Args:
        lr: η.
        curvature: λ of H, 0 < ηλ < 2.
        batches: M, of an epoch; at least 2. All samples are in one of them: where N/B is not whole, what is left
            out of an epoch keeps its noise from summing to 0.

    Raises:
        ValueError: out of these ranges.

    Source: Kühn & Rosenow (arXiv 2306.05300), here without momentum and in closed form.

    >>> [round(epoch_variance(0.1, curvature, 50), 3) for curvature in (0.001, 0.1, 5.0)]
    [0.0, 0.021, 0.959]
    """
    check_real("lr", lr)
    check_real("curvature", curvature)
    check_whole("batches", batches)
    step = lr * curvature
    if not (0 < step < 2 and batches >= 2):
        raise InvalidValueError(
            f"the variance is stationary for 0 < ηλ < 2 and at least 2 batches an epoch, not for ηλ = {step:g} and "
            f"{batches}"
        )
    decay = 1 - step
    powers = torch.tensor(decay, dtype=torch.float64) ** torch.arange(batches, dtype=torch.float64)
    squares, total = float(powers.square().sum()), float(powers.sum())
    kept = squares + (squares - total**2) / (batches - 1)
    return kept * (1 - decay**2) / (1 - decay ** (2 * batches))


def _statistics(noise: Tensor) -> Tensor:
    """The four of :class:`TailTest`, of draws (T, c)."""
    by_coordinate = noise.T
    return torch.stack(
        [
            _kurtosis(by_coordinate).mean(),
            _kurtosis(noise).mean(),
            torch.tensor(stable_index(by_coordinate), dtype=torch.float64),
            torch.tensor(stable_index(noise), dtype=torch.float64),
        ]
    )


def _kurtosis(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / centred.square().mean(1).square() - 3


def _against(value: float, null: Tensor) -> AgainstNull:
    low, high = null.quantile(torch.tensor([0.025, 0.975], dtype=null.dtype)).tolist()
    beyond = min(int((null <= value).sum()), int((null >= value).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(null) + 1))
    return AgainstNull(value, float(null.mean()), low, high, p)
