"""How a risk is opened: its data read in the way that fits the model, which is tried on unlike samples of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from noisescape.distributed import Shard
from noisescape.distributed.shard import failing_together
from noisescape.errors import BatchCouplingError, InvalidTypeError, InvalidValueError, NoisescapeError
from noisescape.risk.contract import check_contract
from noisescape.risk.criterion import NormalisationWarning
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.randomness import Generators
from noisescape.risk.reading import readings
from noisescape.risk.samples import Batch, OwnSamples, TensorSamples
from noisescape.risk.sharded_samples import Samples, ShardedSamples, check_same_losses, check_shards
from noisescape.risk.trial import TRIAL
from noisescape.risk.trial_samples import probe_batches

CHUNK_OF_TARGETS = 4096
"""Samples whose targets are read together."""


@dataclass(frozen=True)
class Opened:
    """What a risk is assembled from.

    Attributes:
        function: the model and loss, normalised for these samples.
        samples: the data.
        tried: batches of a few unlike samples, on which it was tried.
    """

    function: ModelLoss
    samples: Samples
    tried: list[Batch]


def open_data(
    function: ModelLoss,
    data: Any,
    parameters: Callable[[], Tensor],
    budget: int,
    chunk_size: int | None,
    shard: Shard | None = None,
) -> Opened:
    """Read the data, and refuse the model and its loss where they are no function of θ and a sample.

    Of several ways to read the data, the first that the model can be evaluated on.

    Raises:
        BatchCouplingError, InvalidValueError, InvalidTypeError: as :class:`~noisescape.risk.EmpiricalRisk`.
        FailedError: another rank's data was refused.
    """
    if shard is not None and not isinstance(shard, Shard):
        raise InvalidTypeError(f"shard is a Shard, Shard.of_process_group(), not {type(shard).__name__}")
    theta = parameters()  # at once: parameters that ranks share are gathered by all of them together
    with failing_together(shard, "build its risk"):
        own, tried = _tried(function, data, theta, budget, chunk_size)
    samples: Samples = own
    if shard is not None:
        samples = ShardedSamples.of(own, shard)
        check_shards(samples, function, theta, {"memory_budget": budget, "chunk_size": chunk_size})
    function = normalised(function, samples)
    if isinstance(samples, ShardedSamples):
        check_same_losses(samples, function, theta, tried[0])
    for batch in tried:
        function.check_reduction(theta, batch.head(TRIAL.compared))
    return Opened(function, samples, tried)


def _tried(
    function: ModelLoss, data: Any, theta: Tensor, budget: int, chunk_size: int | None
) -> tuple[OwnSamples, list[Batch]]:
    """The data, and batches of unlike samples of it on which the model can be relied."""
    accepted: list[tuple[OwnSamples, list[Batch]]] = []
    errors: list[Exception] = []
    for samples in readings(data, device=function.device, memory_budget=budget):
        try:
            tried = _unlike_samples(function, samples, chunk_size)
            check_contract(function, theta, tried, _whole(samples))
            accepted.append((samples, tried))
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            if isinstance(error, BatchCouplingError) and not accepted:
                raise
            errors.append(error)
    if not accepted:
        first = errors[0]
        if isinstance(first, NoisescapeError):
            raise first
        raise InvalidValueError(
            f"model and loss cannot be evaluated on the first samples, {described(samples)}: "
            f"{type(first).__name__}: {' '.join(str(first).split())}"
        ) from first
    samples, tried = accepted[0]
    if len(accepted) > 1:
        warnings.warn(
            f"the list of {len(data)} pairs may hold batches or single samples; it is read as batches, of "
            f"{samples.count} samples in all. Pass stacked tensors, a DataLoader or a Dataset instead",
            UserWarning,
            stacklevel=5,
        )
    return samples, tried


def described(samples: OwnSamples) -> str:
    """The kinds of tensors that samples are made of."""

    def kinds(part: Any) -> str:
        tensors = [leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)]
        return ", ".join(f"{each.dtype} ({', '.join(map(str, ('n', *each.shape[1:])))})" for each in tensors)

    batch = probe_batches(samples, 1)[0]
    return (
        f"inputs {kinds(batch.inputs) or 'without tensors'} and targets {kinds(batch.targets) or 'without tensors'}"
    )


def _whole(samples: OwnSamples) -> Batch | None:
    """All samples as one batch, where they are held together."""
    return samples.between(0, samples.count) if isinstance(samples, TensorSamples) else None


def _unlike_samples(function: ModelLoss, samples: OwnSamples, chunk_size: int | None) -> list[Batch]:
    """What the model is tried on: as many unlike samples as fit, no more than are ever evaluated together."""
    found = probe_batches(samples, TRIAL.samples)
    with Generators(function.modules, function.criterion.loss).kept():
        try:
            each = max(function.bytes_per_sample(batch.head(2)) for batch in found)
        except Exception:  # what is wrong is said when the model is tried
            each = 1
    size = max(2, min(TRIAL.samples, TRIAL.memory // (3 * each)))  # two whatever they take
    return [batch.head(min(size, chunk_size or size)) for batch in found]


def normalised(function: ModelLoss, samples: Samples) -> ModelLoss:
    """The loss with the N/W of these samples, where it is a weighted mean of its values.

    Warns:
        NormalisationWarning: each sample is normalised by itself, and that is another mean than the criterion's.
    """
    criterion = function.criterion
    of_samples: list[Tensor] = []
    terms: list[Tensor] = []
    plain = True
    for batch in samples.batches(CHUNK_OF_TARGETS):
        weights = criterion.weights(batch.targets)
        if weights is None:
            return function
        flat = weights.reshape(batch.size, -1).double()
        plain = plain and bool((flat == 1).all())
        terms.append(torch.full_like(flat[:, 0], flat.shape[1]))
        of_samples.append(flat.sum(1))
    plain = samples.on_every_rank(plain)
    each, counts = (samples.collected(torch.cat(some)) for some in (of_samples, terms))
    total = float(each.sum())
    if total <= 0:
        raise InvalidValueError("no target counts: all are ignored, or have weight 0")
    if plain and bool((counts == counts[0]).all()):
        return function  # a mean of means is the mean
    if criterion.normalisation == "sample":
        if float(each.max() - each.min()) > 1e-6 * float(each.max()):
            warnings.warn(
                "each sample's loss is normalised by its own targets; the criterion, over all data, weights "
                "samples by how many of their targets count (from "
                f"{float(each.min()):g} to {float(each.max()):g}). "
                'normalisation="criterion" measures what is trained',
                NormalisationWarning,
                stacklevel=5,
            )
        return function
    return function.with_scale(samples.count / total)
