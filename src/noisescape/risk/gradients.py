"""G, the gradients of single samples: rows, or factors of them, in chunks that fit the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noisescape.errors import InvalidValueError
from noisescape.linops.tall import squared_length
from noisescape.risk.arguments import check_indices
from noisescape.risk.closed_form import ClosedForm
from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.layer_gradients import OtherwiseCalledError, RuledLayer
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.sample_gradients import (
    formed_positions,
    sample_gradients,
    sample_norms_less_products,
    sample_square_norms,
)
from noisescape.risk.samples import Batch
from noisescape.risk.sharded_gradients import ShardedGradients
from noisescape.risk.sharded_samples import ShardedSamples

if TYPE_CHECKING:
    from noisescape.risk.empirical_risk import EmpiricalRisk

MOST_BUDGETS = 8
"""A G that takes more than so many memory budgets is refused."""


def gradient_rows(risk: EmpiricalRisk, theta: Tensor, indices: Tensor | None = None) -> Tensor:
    """G, or its rows at ``indices``, (n,): (D,) → (n, D), or (R, D) → (R, n, D).

    Raises:
        InvalidValueError: the result alone would take over 8 times the memory budget.
    """
    risk._check_theta(theta, *([] if indices is None else [indices]))
    if indices is not None:
        check_indices(indices, risk.sample_count)
        if indices.ndim != 1:
            raise InvalidValueError(f"indices must have shape (n,), not {tuple(indices.shape)}")
    count = risk.sample_count if indices is None else len(indices)
    needed = count * theta.numel() * theta.element_size()
    if needed > MOST_BUDGETS * risk._budget:
        raise InvalidValueError(
            f"{count} per-sample gradients of length {risk.dimension} take {needed / 2**30:.1f} GiB; take them a "
            "few samples at a time, per_sample_gradients(theta, indices=...), or raise memory_budget"
        )
    if indices is None and isinstance(risk._function, ModelLoss) and theta.ndim == 1:
        return factored_gradients(risk, theta).rows()
    if indices is None:
        return risk._samples.collected(torch.cat(list(row_chunks(risk, theta)), dim=-2), dim=-2)
    size = _size(risk, theta, risk.dimension)
    found = theta.new_zeros(*theta.shape[:-1], len(indices), risk.dimension)
    for places, group in risk._samples.chosen(indices):
        for batch in group.batches(size):
            own = places[batch.span].to(risk.device)
            found[..., own, :] = _rows(risk, theta, batch)
    return risk._samples.total(found)


def row_chunks(risk: EmpiricalRisk, theta: Tensor) -> Iterator[Tensor]:
    """G in consecutive blocks of rows: of the samples that this process has."""
    risk._check_theta(theta)
    for batch in risk._samples.batches(_size(risk, theta, risk.dimension)):
        yield _rows(risk, theta, batch)


def gradient_columns(risk: EmpiricalRisk, theta: Tensor, coordinates: Tensor) -> Tensor:
    """Some columns of G: θ (D,) and coordinates (c,) → (N, c)."""
    chunks = [rows[:, coordinates] for rows in row_chunks(risk, theta)]
    return risk._samples.collected(torch.cat(chunks))


def factored_gradients(risk: EmpiricalRisk, theta: Tensor) -> FactoredGradients | ShardedGradients:
    """G at a single θ, without forming the gradients of linear layers that get one vector a sample."""
    chunks = factored_chunks(risk, theta)
    if not isinstance(risk._samples, ShardedSamples):
        return FactoredGradients.joined(chunks, risk.sample_count)
    return ShardedGradients(FactoredGradients.joined(chunks, risk._samples.own.count), risk._samples)


def factored_chunks(risk: EmpiricalRisk, theta: Tensor) -> Iterator[FactoredGradients]:
    """:func:`factored_gradients` of consecutive samples, of those that this process has."""
    risk._check_theta(theta, replicas=False)
    if not isinstance(risk._function, ModelLoss):
        yield from map(FactoredGradients.of_rows, row_chunks(risk, theta))
        return
    for batch in risk._samples.batches(_size(risk, theta, risk._capabilities.gradient_width)):
        yield _factored(risk, risk._function, theta, batch)


def fits_gradients(risk: EmpiricalRisk, theta: Tensor) -> bool:
    """Whether all per-sample gradients, factored where they can be, fit the memory budget together."""
    copies = len(theta) if theta.ndim == 2 else 1
    return risk._chunking.holds_rows(copies=copies, width=risk._capabilities.gradient_width)


def per_sample_square_norms(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """‖g_n‖² of every sample in one pass over the per-sample gradients: (D,) → (N,), or (R, D) → (R, N)."""
    if theta.ndim == 1:
        return _by_rules(risk, theta, sample_square_norms, FactoredGradients.square_norms)
    own = torch.cat([rows.square().sum(-1) for rows in row_chunks(risk, theta)], dim=-1)
    return risk._samples.collected(own, dim=-1)


def per_sample_square_distances(risk: EmpiricalRisk, theta: Tensor, centre: Tensor) -> Tensor:
    """‖g_n − m‖² of every sample for a vector m, in one pass: θ and m (D,) → (N,), in float64.

    From ‖g_n‖² − 2 g_n·m + ‖m‖², so below 0 by rounding where a gradient is m.
    """

    def by_rules(function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]) -> Tensor:
        return sample_norms_less_products(function, theta, batch, layers, centre)

    def formed(part: FactoredGradients) -> Tensor:
        return part.square_norms().double() - 2 * (part @ centre[:, None])[:, 0].double()

    return _by_rules(risk, theta, by_rules, formed) + squared_length(centre)


def _by_rules(
    risk: EmpiricalRisk,
    theta: Tensor,
    by_rules: Callable[[ModelLoss, Tensor, Batch, Sequence[RuledLayer]], Tensor],
    formed: Callable[[FactoredGradients], Tensor],
) -> Tensor:
    """A number of every sample, (N,): without forming gradients where there are rules, else of formed ones."""
    layers, function = risk._capabilities.ruled_layers, risk._function
    if not layers or not isinstance(function, ModelLoss):
        return risk._samples.collected(torch.cat([formed(part) for part in factored_chunks(risk, theta)]))
    risk._check_theta(theta)
    width = sum(function.sizes[position] for position in formed_positions(function, layers))
    parts = []
    for batch in risk._samples.batches(_size(risk, theta, width)):
        try:
            parts.append(by_rules(function, theta, batch, layers))
        except OtherwiseCalledError:
            rows = FactoredGradients(function.sizes, function.gradients_one_by_one(theta, batch))
            parts.append(formed(rows))
    return risk._samples.collected(torch.cat(parts))


def _rows(risk: EmpiricalRisk, theta: Tensor, batch: Batch) -> Tensor:
    """G of a batch, (n, D), or (R, n, D)."""
    if isinstance(risk._function, ClosedForm):
        return risk._function.gradients(theta, batch)
    if theta.ndim == 2:
        return torch.stack([_rows(risk, row, batch) for row in theta])
    if batch.size == 1:  # a rule is for several
        return risk._function.gradients_one_by_one(theta, batch)
    return _factored(risk, risk._function, theta, batch).rows()


def _factored(risk: EmpiricalRisk, function: ModelLoss, theta: Tensor, batch: Batch) -> FactoredGradients:
    """G of a batch at a single θ."""
    layers = risk._capabilities.ruled_layers
    if layers is None:
        return FactoredGradients(function.sizes, function.gradients_one_by_one(theta, batch))
    try:
        return sample_gradients(function, theta, batch, layers)
    except OtherwiseCalledError:
        return FactoredGradients(function.sizes, function.gradients_one_by_one(theta, batch))


def _size(risk: EmpiricalRisk, theta: Tensor, width: int) -> int:
    """How many gradients of so many numbers are evaluated together."""
    return risk._chunking.rows(copies=len(theta) if theta.ndim == 2 else 1, width=width)
