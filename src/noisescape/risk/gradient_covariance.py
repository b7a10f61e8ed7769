"""The covariance of minibatch gradients, and the uncentred second moment it is mistaken for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops import SampleColumns, Split, SymmetricOperator
from noisescape.linops.gram import fixed_generator, leading_pairs_of, sketched_pairs, sketches
from noisescape.linops.probing import rademacher
from noisescape.linops.tall import orthonormal
from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.gradients import factored_chunks, factored_gradients, fits_gradients, gradient_rows, row_chunks
from noisescape.risk.sharded_gradients import ShardedGradients
from noisescape.risk.sharded_samples import ShardedSamples
from noisescape.scalars import check_flag, check_whole

if TYPE_CHECKING:
    from noisescape.risk.empirical_risk import EmpiricalRisk

GRAM_LIMIT = 4_000
"""Largest N whose N × N Gram matrix is factored for exact leading eigenpairs."""


def covariance_factor(batch_size: int, sample_count: int, *, replacement: bool) -> float:
    """Σ_B = factor · C for batches of B out of N.

    1/B with replacement; (N−B)/(B(N−1)) without, which vanishes at B = N.

    Raises:
        ValueError: B < 1, or B > N without replacement.
        TypeError: B is not an int, or replacement not a bool.

    >>> covariance_factor(5, 10, replacement=True), covariance_factor(10, 10, replacement=False)
    (0.2, 0.0)
    """
    check_whole("batch_size", batch_size)
    check_flag("replacement", replacement)
    if replacement:
        return 1 / batch_size
    if batch_size > sample_count:
        raise InvalidValueError(
            f"batch_size = {batch_size} exceeds the {sample_count} samples: without replacement a batch holds "
            "each sample at most once; use a smaller batch or replacement=True"
        )
    if sample_count == 1:
        return 0.0
    return (sample_count - batch_size) / (batch_size * (sample_count - 1))


class GradientOuterProduct(SymmetricOperator):
    """(c/N) Σ_n (g_n − m)(g_n − m)ᵀ with m = ḡ (centred) or 0, never formed.

    The per-sample gradients G (N × D), of linear layers only their factors, are kept if they fit the risk's memory
    budget: a product is then two matrix products. Otherwise each product is one forward-mode and one reverse pass
    over the data.

    θ is not copied: it must not be changed in place.
    """

    def __init__(self, risk: EmpiricalRisk, theta: Tensor, *, factor: float, centred: bool, name: str) -> None:
        super().__init__(risk.dimension, dtype=risk.dtype, device=risk.device, psd=True, name=name)
        self.risk = risk
        self.theta = theta
        self.column_bytes = min(self.column_bytes, risk._chunking.budget)
        self.factor = factor
        self.centred = centred
        self._held: FactoredGradients | ShardedGradients | None = None

    def _gradients(self) -> FactoredGradients | ShardedGradients | None:
        """G, if it fits the memory budget."""
        if self._held is None and fits_gradients(self.risk, self.theta):
            self._held = factored_gradients(self.risk, self.theta)
        return self._held

    def _along(self, block: Tensor) -> Tensor:
        """JGv, (N, K), with J = I − 11ᵀ/N if centred."""
        held = self._gradients()
        if held is None:
            return self._centred(self.risk.jvp(self.theta, block))
        self.risk._samples.check_same(self.theta, block)
        return self._centred(held @ block)

    def _centred(self, weights: Tensor) -> Tensor:
        """Jw, (N, K)."""
        return weights - weights.mean(0) if self.centred else weights

    def _weighted(self, weights: Tensor) -> Tensor:
        """Gᵀw, (D, K)."""
        if weights.shape[1] == 0:
            return weights.new_empty(self.size, 0)
        held = self._gradients()
        return self.risk.vjp(self.theta, weights) if held is None else held.weighted(weights)

    def _matmat(self, block: Tensor) -> Tensor:
        return self.factor / self.risk.sample_count * self._weighted(self._along(block))

    def diagonal(self) -> Tensor:
        """The exact diagonal, (D,), in one pass over the per-sample gradients."""
        if self._held is not None:
            return self.factor * self._held.moments(centred=self.centred)[1]
        return self.factor * gradient_moments(self.risk, self.theta, centred=self.centred)[1]

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws of N(0, A), (count, D): one re-weighted backward pass each.

        √(c/N) Gᵀ(z − mean z) with z ~ N(0, I_N), the mean left in when uncentred.
        """
        number = self.risk.sample_count
        generator = self.risk._samples.shared_generator(generator, self.device)
        noise = torch.randn(number, count, generator=generator, dtype=self.dtype, device=self.device)
        return self._weighted(self._centred(noise) * (self.factor / number) ** 0.5).mT

    def leading(self, k: int) -> tuple[Tensor, Tensor] | None:
        """The k leading eigenpairs from the N × N Gram matrix, where G fits and N ≤ 4,000.

        Fewer than k where the rank is lower.
        """
        if self.risk.sample_count > GRAM_LIMIT:
            return None
        held = self._gradients()
        if held is None:
            return None
        scale = self.factor / self.risk.sample_count
        values, vectors, total = leading_pairs_of(held, k, centred=self.centred)
        if len(values) < k and float(values.double().sum()) < (1 - 1e-5) * total:
            return None  # not a lower rank: the rest is only below what this precision resolves
        return scale * values, vectors

    def principal(self, k: int) -> Tensor | None:
        """From a sketch of the per-sample gradients, where they fit; by :meth:`leading` where they are few."""
        held = self._gradients()
        if held is None:
            return None
        if sketches(held, k):
            return sketched_pairs(held, k, centred=self.centred)[1]
        return super().principal(k)

    def columns_of_samples(self) -> SampleColumns | None:
        """√c (g_n − m) of each sample, computed anew each time."""
        if self.risk.shard is not None:
            return None
        centre = self.risk.gradient(self.theta) if self.centred else torch.zeros_like(self.theta)

        def at(samples: Tensor) -> Tensor:
            rows = gradient_rows(self.risk, self.theta, samples.to(self.device))
            return self.factor**0.5 * (rows - centre).mT

        return SampleColumns(self.risk.sample_count, at)

    def split(self, k: int) -> Split:
        """A = FFᵀ with F = √(c/N) GᵀJ.

        V spans the images of :meth:`principal`, or of random combinations of the gradients where those do not fit.
        """
        count = self.risk.sample_count
        root = (self.factor / count) ** 0.5
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        basis = self.principal(k) if k else None
        if k == 0:
            carried, exhausted = like.new_empty(count, 0), False
        elif basis is None:
            start = self._centred(rademacher(count, k, like, fixed_generator(self.device)))
            images = [self._along(self._weighted(some)) for some in start.split(self.block, dim=1)]
            carried, exhausted = orthonormal(torch.cat(images, dim=1)), False
        else:
            carried, exhausted = orthonormal(self._along(basis)), basis.shape[1] < k

        def factor(weights: Tensor) -> Tensor:
            return self._weighted(root * self._centred(weights))

        return Split(factor, carried, exhausted or carried.shape[1] == count)


class NoiseCovariance(GradientOuterProduct):
    """Σ_B, the covariance of a minibatch gradient: gradient noise; the update's is η²Σ_B.

    Args:
        risk: whose gradients.
        theta: where, (D,).
        batch_size: B.
        replacement: the sampling law; see :func:`covariance_factor`.
    """

    def __init__(self, risk: EmpiricalRisk, theta: Tensor, batch_size: int, *, replacement: bool) -> None:
        factor = covariance_factor(batch_size, risk.sample_count, replacement=replacement)
        super().__init__(risk, theta, factor=factor, centred=True, name="noise covariance")
        self.batch_size = batch_size
        self.replacement = replacement


class EmpiricalFisher(GradientOuterProduct):
    """(1/N) Σ g_n g_nᵀ = C + ḡḡᵀ: uncentred, per sample (no 1/B)."""

    def __init__(self, risk: EmpiricalRisk, theta: Tensor, *, name: str = "empirical Fisher") -> None:
        super().__init__(risk, theta, factor=1.0, centred=False, name=name)


def gradient_moments(risk: EmpiricalRisk, theta: Tensor, *, centred: bool = True) -> tuple[Tensor, Tensor]:
    """ḡ and diag C, the mean and the variance of each coordinate over the samples' gradients.

    (D,) → two of (D,), (R, D) → two of (R, D). One pass over the per-sample gradients, which are never all held.
    Uncentred: 0 and the second moment. A variance far below the mean's square is only known to that square's
    rounding error where linear layers' gradients are not formed.
    """
    mean = torch.zeros_like(theta)
    total = torch.zeros_like(theta)
    seen = 0
    for count, centre, variances in _moments_of_chunks(risk, theta, centred=centred):
        if seen == 0:
            mean, total, seen = centre, count * variances, count
            continue
        # the deviations of each chunk from its own mean, then those of the means (Chan's update)
        total += count * variances
        total += (centre - mean).square() * (seen * count / (seen + count))
        mean = mean + (centre - mean) * (count / (seen + count))
        seen += count
    if isinstance(risk._samples, ShardedSamples):
        return risk._samples.merged_moments(mean, total / seen)
    return mean, total / seen


def _moments_of_chunks(
    risk: EmpiricalRisk, theta: Tensor, *, centred: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    if theta.ndim == 1:
        for part in factored_chunks(risk, theta):
            yield len(part), *part.moments(centred=centred)
        return
    for rows in row_chunks(risk, theta):
        centre = rows.mean(-2) if centred else torch.zeros_like(theta)
        yield rows.shape[-2], centre, (rows - centre[..., None, :]).square().mean(-2)
