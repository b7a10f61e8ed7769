"""A few samples that differ as much as possible, on which the model's behaviour is tried before it is relied on.

What holds for one sample need not hold for another: padding, blank images and unlabelled tokens take other paths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.risk.samples import Batch, OwnSamples, TensorSamples
from noisescape.risk.trees import tensors_of
from noisescape.risk.trial import TRIAL

COUNTED = 2**23
"""Whole numbers of so many entries at most are counted."""


def probe_batches(samples: OwnSamples, size: int) -> list[Batch]:
    """Up to ``size`` unlike samples of each shape there is (of three shapes at most), the most unlike first."""
    found = []
    for pool in _pools(samples):
        order = spread(features(pool), min(size, pool.count))
        inputs, targets = pool.take(order)
        found.append(Batch(inputs, targets, 0, len(order)))
    return found


def _pools(samples: OwnSamples) -> list[TensorSamples]:
    if isinstance(samples, TensorSamples):
        bytes_each = sum(
            leaf[0].numel() * leaf.element_size() for leaf in tensors_of((samples.inputs, samples.targets))
        )
        most = max(2, min(TRIAL.pool, TRIAL.memory // max(1, bytes_each)))
        if samples.count <= most:
            return [samples]
        rare = rarest(samples)[: most // 8]
        evenly = torch.linspace(0, samples.count - 1, most - len(rare)).round().long()
        return [TensorSamples(*samples.take(torch.cat([rare, evenly]).unique()))]
    pools = sorted(samples.candidates, key=lambda pool: _numbers(pool))
    return pools if len(pools) <= TRIAL.shapes else [pools[0], pools[len(pools) // 2], pools[-1]]


def _numbers(pool: TensorSamples) -> int:
    """How many numbers one sample has."""
    return sum(leaf[0].numel() for leaf in tensors_of((pool.inputs, pool.targets)))


def features(pool: TensorSamples) -> Tensor:
    """What tells samples apart at a glance, (n, F), each of unit spread: level, spread, extremes, emptiness.

    The share of a sample's entries equal to the smallest there is anywhere shows padding and ignored targets.
    """
    columns = []
    for leaf in tensors_of((pool.inputs, pool.targets)):
        flat = (leaf.abs() if leaf.is_complex() else leaf).detach().reshape(pool.count, -1).float()
        if flat.shape[1] == 0:
            continue
        flat = flat.nan_to_num(0.0, 0.0, 0.0)
        empty = [(flat == 0).float().mean(1), (flat == flat.min()).float().mean(1)]
        low, high = flat.aminmax(dim=1)
        columns += [flat.mean(1), torch.linalg.vector_norm(flat, dim=1), low, high, *empty]
        if not leaf.is_floating_point() and not leaf.is_complex():
            columns.append(_commonness(leaf).log().float())
    if not columns:
        return torch.zeros(pool.count, 1)
    found = torch.stack([column.cpu() for column in columns], dim=1).double()
    # squares of large numbers overflow float32
    return ((found - found.mean(0)) / found.std(0, correction=0).clamp_min(1e-12)).nan_to_num(0.0, 0.0, 0.0)


def rarest(samples: TensorSamples) -> Tensor:
    """Indices of all samples that hold some whole number, those with the rarest such number first."""
    whole = [
        leaf
        for leaf in tensors_of((samples.inputs, samples.targets))
        if not leaf.is_floating_point() and not leaf.is_complex() and 0 < leaf.numel() <= COUNTED
    ]
    if not whole:
        return torch.empty(0, dtype=torch.long)
    return torch.stack([_commonness(leaf) for leaf in whole]).amin(0).argsort(stable=True)


def _commonness(leaf: Tensor) -> Tensor:
    """How often the rarest number of each sample occurs anywhere, (n,)."""
    _, places, counts = leaf.detach().reshape(len(leaf), -1).cpu().unique(return_inverse=True, return_counts=True)
    return counts[places].amin(1)


def spread(points: Tensor, count: int) -> Tensor:
    """Indices of ``count`` points, each as far as possible from those before it; the first lies farthest out."""
    distances = torch.linalg.vector_norm(points, dim=1)
    chosen = [int(distances.argmax())]
    nearest = torch.full_like(distances, torch.inf)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(points - points[chosen[-1]], dim=1))
        nearest[chosen[-1]] = -1.0
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)
