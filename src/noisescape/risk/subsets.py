"""The risk of other samples of the kind that a risk was tried on: nothing is tried anew.

What a risk finds out of its model, and how it evaluates it, holds of the model and of samples of one kind. Where a
thousandth of them is asked after at a time, as inside a training loop, trying each anew would take longer than all
that is asked.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.opening import normalised
from noisescape.risk.reading import readings
from noisescape.risk.samples import OwnSamples, StreamedSamples, TensorSamples, form_of
from noisescape.risk.sharded_samples import ShardedSamples
from noisescape.risk.trees import Tree

if TYPE_CHECKING:
    from noisescape.risk.empirical_risk import EmpiricalRisk


def restricted(risk: EmpiricalRisk, indices: Tensor) -> EmpiricalRisk:
    """The mean of ℓ_n over the samples at ``indices``, (n,), as a risk; each ℓ_n is what it is in ``risk``.

    Samples that lie with several ranks are brought together: every rank gets the same risk, of all of them.

    >>> import torch
    >>> from noisescape.risk import EmpiricalRisk
    >>> whole = EmpiricalRisk(torch.nn.Linear(2, 1), torch.nn.MSELoss(), (torch.randn(9, 2), torch.randn(9, 1)))
    >>> some = restricted(whole, torch.tensor([0, 4, 8]))
    >>> torch.allclose(some.losses(whole.parameters()), whole.losses(whole.parameters())[[0, 4, 8]])
    True
    """
    known = risk._samples
    found = known.brought_together(indices) if isinstance(known, ShardedSamples) else known.chosen(indices)
    groups = [group for _, group in found]
    samples: OwnSamples = groups[0]
    if len(groups) > 1:
        batches = [(group.inputs, group.targets) for group in groups]
        samples = StreamedSamples(batches, [group.count for group in groups], None, groups, _as_it_is)
    return _sharing(risk, risk._model_loss("some of its samples"), samples)


def on_samples_alike(risk: EmpiricalRisk, inputs: Tree, targets: Tree) -> EmpiricalRisk | None:
    """The same risk on other samples, as many as there are; None where they are of another form.

    They are of one form where containers, constants, dtypes and the shapes of single samples are the same. The
    criterion's N/W is that of the new samples.

    Raises:
        ValueError, TypeError: data that :class:`EmpiricalRisk` refuses for its own sake: empty, of unequal lengths,
            on another device.
    """
    (samples,) = readings((inputs, targets), device=risk.device, memory_budget=risk._budget)
    known = risk._samples
    if not isinstance(samples, TensorSamples) or not isinstance(known, TensorSamples):
        return None
    if form_of(samples) != form_of(known):
        return None
    function = risk._model_loss("other samples").with_scale(None)
    return _sharing(risk, normalised(function, samples), samples)


def _sharing(risk: EmpiricalRisk, function: ModelLoss, samples: OwnSamples) -> EmpiricalRisk:
    other = risk._like(function, samples, risk._parameters, risk._tried)
    other._capabilities = risk._capabilities
    other._largest_tried = risk._largest_tried
    other.__dict__["_chunking"] = dataclasses.replace(risk._chunking, count=samples.count)
    return other


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
