"""Several Markov chains of one law: whether they agree, and how many independent draws they are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import Estimate

SHORTEST = 8
"""Draws of a chain, in whose halves there is something to compare."""


@dataclass(frozen=True)
class ChainMean:
    """The mean over chains, and what it rests on.

    Attributes:
        estimate: the mean; its standard error is that of ``effective_sample_size`` independent draws.
        effective_sample_size: as :func:`effective_sample_size`.
        r_hat: as :func:`split_r_hat`.
    """

    estimate: Estimate
    effective_sample_size: float
    r_hat: float


def chain_mean(chains: Tensor) -> ChainMean:
    """The mean of a quantity over chains, (M, T), with the error that their correlation leaves.

    The error bar has as many degrees of freedom as the variance of a mean that is summed up from autocovariances of
    ``lags`` lags can have, MT/(2·lags + 1): what it rests on is the correlation time, which is itself estimated.

    Raises:
        ValueError: as :func:`effective_sample_size`.

    Source: Sokal (1997) for the variance of the correlation time.

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> print(chain_mean(draws + 3).estimate)
    2.993 ± 0.016
    """
    halves = _halves(chains)
    variance, time, lags = _correlation(halves)
    count = halves.numel()
    effective = count / time
    dof = max(1.0, count / (2 * lags + 1))
    estimate = Estimate(float(halves.mean()), math.sqrt(variance / effective), dof=dof)
    return ChainMean(estimate, effective, split_r_hat(chains))


def effective_sample_size(chains: Tensor) -> float:
    """How many independent draws have a mean as certain as that of these chains: MT/τ.

    τ = 1 + 2 Σ_t ρ_t, the autocorrelations ρ_t pooled over the halves of the chains and held to the variance
    between them, so that chains that disagree count little. The sum ends where two neighbours come to less than 0
    (Geyer's initial sequence), and none of those pairs counts more than an earlier one.

    Args:
        chains: draws of one quantity, (M, T), without burn-in; NaN-free. An odd first draw is left out.

    Raises:
        ValueError: a shape that is not (M, T) with T ≥ 8, draws that are not finite, or all the same.

    Source: Geyer (1992); Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), arXiv 1903.08008.

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> 3000 < effective_sample_size(draws) < 5000
    True
    """
    halves = _halves(chains)
    return halves.numel() / _correlation(halves)[1]


def split_r_hat(chains: Tensor) -> float:
    """R̂, rank-normalised and split: about 1 where chains, and the halves of each, are draws of one law.

    √ of the variance of all draws over that within halves of chains, after draws were replaced by the normal scores
    of their ranks; the larger of it and the same for the distance from the median, which tells scales apart. Over
    1.01 (strictly) or 1.05 (commonly) chains are too short.

    Args:
        chains: as for :func:`effective_sample_size`.

    Raises:
        ValueError: as :func:`effective_sample_size`.

    Source: Vehtari et al. (2021), arXiv 1903.08008.

    >>> draws = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    >>> apart = draws + torch.arange(4)[:, None]
    >>> [round(split_r_hat(each), 2) for each in (draws, apart)]
    [1.0, 1.53]
    """
    halves = _halves(chains)
    folded = (halves - halves.median()).abs()
    return max(_ratio(_normal_scores(halves)), _ratio(_normal_scores(folded)))


def _halves(chains: Tensor) -> Tensor:
    """Both halves of every chain as chains, (2M, T/2), float64."""
    if chains.ndim != 2 or chains.shape[0] < 1 or chains.shape[1] < SHORTEST:
        raise InvalidValueError(
            f"chains must have shape (M, T), each of T ≥ {SHORTEST} draws, not {tuple(chains.shape)}"
        )
    draws = chains.detach().double()
    if not bool(torch.isfinite(draws).all()):
        raise InvalidValueError("some draws of the chains are not finite: leave out the chains that diverged")
    if bool((draws == draws[0, 0]).all()):
        raise InvalidValueError(f"all draws of the chains are {float(draws[0, 0]):g}: nothing was sampled")
    half = draws.shape[1] // 2
    return draws[:, draws.shape[1] - 2 * half :].reshape(-1, half)


def _variances(chains: Tensor) -> tuple[Tensor, Tensor]:
    """The mean variance within chains, and that of all draws, the means of the chains weighed in."""
    length = chains.shape[1]
    within = chains.var(1).mean()
    return within, within * (length - 1) / length + chains.mean(1).var()


def _ratio(chains: Tensor) -> float:
    within, total = _variances(chains)
    return float((total / within).sqrt())


def _correlation(chains: Tensor) -> tuple[float, float, int]:
    """The variance of all draws, the correlation time τ, and up to which lag it was summed."""
    count, length = chains.shape
    within, total = _variances(chains)
    padded = torch.fft.rfft(chains - chains.mean(1, keepdim=True), 2 * length)
    autocovariance = torch.fft.irfft(padded.abs().square(), 2 * length)[:, :length] / length
    correlation = 1 - (within - autocovariance.mean(0)) / total
    correlation[0] = 1
    pairs = correlation[: length - length % 2].reshape(-1, 2).sum(1)
    negative = (pairs < 0).nonzero()
    kept = pairs[: int(negative[0])] if len(negative) else pairs
    time = float(2 * kept.cummin(0).values.sum() - 1)
    # of chains whose neighbours alternate, little is left of the sum but its error: no more than this is believed
    return float(total), max(time, 1 / math.log10(count * length)), 2 * len(kept)


def _normal_scores(values: Tensor) -> Tensor:
    """Quantiles of the normal law at the values' ranks, equal values sharing theirs."""
    _, place, repeats = torch.unique(values, return_inverse=True, return_counts=True)
    ranks = (repeats.cumsum(0) - (repeats - 1).double() / 2)[place]
    return torch.special.ndtri((ranks - 3 / 8) / (values.numel() + 1 / 4))
