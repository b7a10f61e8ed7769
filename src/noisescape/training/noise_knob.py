"""The noise knob: a large batch whose gradient is as noisy as a small one's."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from noisescape.errors import InvalidTypeError, InvalidValueError, kind_of


def as_if_batch(losses: Tensor, batch_size: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Σ_i w_i ℓ_i, in place of ``losses.mean()``: its gradient has the noise of a batch of ``batch_size`` samples.

    With B losses, b = ``batch_size`` and z ~ N(0, I_B),

        w_i = (1 + s(z_i − z̄))/B,    s² = (B/b − 1)·B/(B − 1).

    Σ w_i = 1, so the *gradient* keeps its mean, and given the batch its expectation over z is the batch's own mean
    gradient. Its covariance becomes exactly that of a batch of b drawn by the same law: C/b for independent
    samples, (N − b)/(b(N − 1))·C for samples drawn from N without replacement, C the covariance of one sample's
    gradient. (The spread within the batch adds s²(B − 1)/B²·C = (1/b − 1/B)·C to the C/B that is there.) The
    update's covariance is η² times that. Mean and covariance are matched, not more: given the batch the noise is
    Gaussian, that of a small batch is not. H is re-weighted with the gradient: it is that of Σ w_i ℓ_i.

    The weights come after the forward pass, so running statistics of batch normalisation are those of a plain step.
    (In training mode its losses depend on one another and no C exists; the mean over z is right all the same.)
    For b well below B weights are often negative, and so may the value be: log ``losses.mean()`` instead.

    **Accumulation and data parallelism.** A step that averages K independent pieces of B samples (micro-steps,
    ranks, or both) has the covariance of one piece over K. For the noise of b samples in the whole step call
    ``as_if_batch(losses, b / K)`` on every piece, which may well be below 1, and average as ever: ``loss / K``
    under accumulation; ``DistributedDataParallel`` averages over ranks by itself. Give every rank its own seed.

    Args:
        losses: (B,), one loss a sample, unreduced (``reduction="none"``), with its graph; those of half precision
            are weighted and summed in float32.
        batch_size: b, in samples, 0 < b ≤ B; need not be whole. b = B is the plain mean and draws nothing.
        generator: of z, on any device; by default torch's own. One that is given breaks ``torch.compile``'s graph.

    Returns:
        The loss to call ``backward()`` on, a scalar in float32, or float64 where the losses are.

    Raises:
        TypeError: losses that are no floating-point tensor, a ``batch_size`` that is no number.
        ValueError: losses that are not one a sample; b ≤ 0 or b > B; b < 1 where the batch is a single sample,
            which has no spread to make noise of.

    Multiplicative Gaussian noise of the minibatch covariance: Wu, Hu, Xiong, Huan, Braverman and Zhu 2020
    (arXiv 1906.07405). Whether it makes up for small batches is disputed: ``noisescape reproduce noise-knob``.

    >>> model = torch.nn.Linear(3, 2)
    >>> inputs, targets = torch.randn(64, 3), torch.randint(0, 2, (64,))
    >>> losses = torch.nn.functional.cross_entropy(model(inputs), targets, reduction="none")
    >>> as_if_batch(losses, batch_size=8).backward()
    >>> torch.equal(as_if_batch(losses, batch_size=64), losses.mean())
    True
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        found = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise InvalidTypeError(f"losses must be a floating-point tensor, not {found}")
    if losses.ndim != 1:
        mend = (
            'take the loss unreduced: reduction="none"'
            if losses.ndim == 0
            else "reduce each sample's own to one number first: losses.flatten(1).mean(1)"
        )
        raise InvalidValueError(
            f"losses must be one a sample, (B,), not of shape {tuple(losses.shape)}; {mend}",
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Real):
        raise InvalidTypeError(f"batch_size must be a number of samples, not {batch_size!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"generator must be a torch.Generator, not {kind_of(generator)}")
    count, size = len(losses), float(batch_size)
    if not 0 < size < math.inf:
        raise InvalidValueError(f"batch_size must be positive and finite, not {batch_size}")
    if size > count:
        raise InvalidValueError(
            f"batch_size = {batch_size}, but there are only {count} losses, and weights cannot take noise away; "
            "give a smaller batch_size, or leave out a short last batch (drop_last=True)"
        )
    if losses.dtype != torch.float64:
        losses = losses.float()
    if size == count:
        return losses.mean()
    if count == 1:
        raise InvalidValueError(
            f"batch_size = {batch_size} of a single loss: one sample has no spread to make noise of; "
            "give at least two losses"
        )
    z = _standard_normal(losses, generator)
    scale = math.sqrt((count / size - 1) * count / (count - 1))
    weights = (1 + scale * (z - z.mean())) / count
    return (weights * losses).sum()


def _standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """As many draws as there are losses, of their dtype, on their device."""
    if generator is None:  # torch.compile traces this, and none that is handed a generator
        return torch.randn_like(like)
    drawn = torch.randn(len(like), generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)
