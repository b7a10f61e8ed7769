"""The data of a risk with targets drawn from the model's own predictions, as the Fisher information asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.samples import Batch, OwnSamples, StreamedSamples
from noisescape.risk.sharded_samples import Samples, ShardedSamples

SampleTargets = Callable[[Any, torch.Generator], Tensor]
"""(outputs, generator) ↦ targets, one a sample along the first dimension."""


def with_drawn_targets(
    function: ModelLoss,
    samples: Samples,
    batches: Iterable[Batch],
    theta: Tensor,
    sample_targets: SampleTargets,
    draws: int,
    seed: int,
) -> Samples:
    """The same inputs, ``draws`` times, with drawn targets; the targets are held, the inputs are not.

    Raises:
        InvalidValueError: ``sample_targets`` returns no tensor of one target a sample.
    """
    shared = torch.Generator(function.device).manual_seed(seed)
    generator = samples.own_generator(shared, function.device) or shared
    drawn: list[list[Tensor]] = [[] for _ in range(draws)]
    for batch in batches:
        outputs = function.output_values(theta, batch.inputs)
        for targets in drawn:
            found = sample_targets(outputs, generator)
            if not isinstance(found, Tensor) or found.shape[:1] != (batch.size,):
                what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise InvalidValueError(
                    f"sample_targets returned {what} for {batch.size} samples; it must return a tensor of one "
                    "target a sample along its first dimension"
                )
            targets.append(found.detach())
    return with_targets(samples, drawn)


def with_targets(samples: Samples, targets: Sequence[Sequence[Tensor]]) -> Samples:
    """The same inputs with other targets, once for each set of them, which holds those of consecutive batches."""
    if isinstance(samples, ShardedSamples):
        return samples.with_own(_redrawn(samples.own, targets))
    return _redrawn(samples, targets)


def _redrawn(samples: OwnSamples, targets: Sequence[Sequence[Tensor]]) -> StreamedSamples:
    size = max(len(some) for some in targets[0])
    sizes = [len(some) for each in targets for some in each]
    return StreamedSamples(_Redrawn(samples, size, targets), sizes, None, [], lambda tensor: tensor)


class _Redrawn:
    """Batches of the same inputs, once for each set of targets."""

    def __init__(self, samples: OwnSamples, size: int, drawn: Sequence[Sequence[Tensor]]) -> None:
        self._samples, self._size, self._drawn = samples, size, drawn

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for targets in self._drawn:
            for batch, some in zip(self._samples.batches(self._size), targets, strict=True):
                yield batch.inputs, some
