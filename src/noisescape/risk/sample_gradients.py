"""The gradients of a batch's samples: by the rules of layers, those of other parameters by a mapped pass."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noisescape.linops.tall import inner_products, lengths
from noisescape.risk.agreement import KINKED
from noisescape.risk.contract import all_in_float64
from noisescape.risk.differentiation import gradient_of_sum
from noisescape.risk.factored_gradients import FactoredGradients
from noisescape.risk.layer_gradients import (
    Meeting,
    RuledLayer,
    meetings,
    ruled_layers,
    without_partners_lost,
)
from noisescape.risk.layer_rules import tied_inner_products
from noisescape.risk.mapped_gradients import mapped_gradients, mapped_losses
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.samples import Batch
from noisescape.risk.trial import TRIAL

ROUNDING = 16
"""Epsilons of the largest sample's gradient that a layer's part may be off by: no more is known of one so small."""


def sample_gradients(
    function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]
) -> FactoredGradients:
    """G of a batch at θ, (D,): factors of the single layers, rows of all else."""
    rows = mapped_gradients(function, theta, batch, remaining(function, layers))
    outer = []
    for met in meetings(function, theta, batch, layers):
        if met.layer.single:
            outer.append(met.factors())
        else:
            _add(rows, met.rows())
    direct = [rows[position] for position in sorted(rows)]
    return FactoredGradients(function.sizes, torch.cat([theta.new_empty(batch.size, 0), *direct], dim=1), outer)


def sample_square_norms(function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]) -> Tensor:
    """‖g_n‖² of a batch at θ, (D,): (n,)."""
    met, rows = _met_and_rows(function, theta, batch, layers)
    return _square_norms(function, met, rows)


def sample_norms_less_products(
    function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer], vector: Tensor
) -> Tensor:
    """‖g_n‖² − 2 g_n·v of a batch at θ, v and θ (D,): (n,), in float64."""
    met, rows = _met_and_rows(function, theta, batch, layers)
    along = theta.new_zeros(batch.size)
    parts = function.parts(vector)
    for each in met:
        along += each.inner_products(parts)
    for position in remaining(function, layers):
        along += inner_products(rows[position], parts[position].view(-1, 1))[:, 0]
    return _square_norms(function, met, rows).double() - 2 * along.double()


def _met_and_rows(
    function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]
) -> tuple[list[Meeting], dict[int, Tensor]]:
    """What meets at the layers, and the gradients of the parameters that none of them has, by position."""
    rows = mapped_gradients(function, theta, batch, remaining(function, layers))
    return meetings(function, theta, batch, layers), rows


def _square_norms(function: ModelLoss, meetings: Sequence[Meeting], rows: dict[int, Tensor]) -> Tensor:
    layers = [each.layer for each in meetings]
    formed = set(formed_positions(function, layers))
    rows, met = dict(rows), {each.layer.place: each for each in meetings}
    parts = []
    for each in meetings:
        if formed.isdisjoint(each.layer.parameters):
            parts.append(each.square_norms())
        else:
            _add(rows, each.rows())
    parts += [gradients.square().sum(1) for gradients in rows.values()]
    for pair in tied_pairs(layers):  # ‖a + b‖² = ‖a‖² + ‖b‖² + 2 a·b
        table, head = (met[layer.place] for layer in pair)
        parts.append(
            2 * tied_inner_products(table.layer.module, table.given, table.deltas, head.given, head.deltas)
        )
    return torch.stack(parts).sum(0).clamp_min_(0)  # inner products of places cancel, to their rounding error


def formed_positions(function: ModelLoss, layers: Sequence[RuledLayer]) -> list[int]:
    """The positions of the parameters whose gradients' norms need the gradients themselves.

    Of those that no rule is for; and of those that layers share, unless they are a tied pair: the norm of a sum
    does not follow from those of its parts.
    """
    has = Counter(position for layer in layers for position in layer.parameters)
    for pair in tied_pairs(layers):
        has.subtract(pair[0].parameters)
    shared = {each for layer in layers if any(has[p] > 1 for p in layer.parameters) for each in layer.parameters}
    return sorted({*remaining(function, layers), *shared})


def tied_pairs(layers: Sequence[RuledLayer]) -> list[tuple[RuledLayer, RuledLayer]]:
    """Tables of embeddings whose vectors are the weight of one linear layer, and that layer."""
    has: dict[int, list[RuledLayer]] = {}
    for layer in layers:
        for position in layer.parameters:
            has.setdefault(position, []).append(layer)
    pairs = []
    for sharing in has.values():
        sharing = sorted(sharing, key=lambda layer: type(layer.module) is nn.Linear)
        if [type(layer.module) for layer in sharing] == [nn.Embedding, nn.Linear]:
            pairs.append((sharing[0], sharing[1]))
    return pairs


def _add(rows: dict[int, Tensor], more: dict[int, Tensor]) -> None:
    for position, gradients in more.items():
        rows[position] = rows[position] + gradients if position in rows else gradients


def remaining(function: ModelLoss, layers: Sequence[RuledLayer]) -> list[int]:
    """The positions of parameters that no layer with a rule has."""
    taken = {position for layer in layers for position in layer.parameters}
    return [position for position in range(len(function.sizes)) if position not in taken]


def usable_layers(
    function: ModelLoss, theta: Tensor, batches: Sequence[Batch], *, rules_allowed: bool
) -> list[RuledLayer] | None:
    """The layers whose rules give the gradients of single samples; None where even mapping gives others.

    Against the gradients of the first samples of each batch, one by one; if in doubt, one by one it is.
    """
    most = max(2, TRIAL.memory // (theta.numel() * torch.float64.itemsize))
    tried = [batch.head(min(TRIAL.mapped, most)) for batch in batches]
    known = (function, theta, tried)
    maps = all(_maps(function, theta, batch) for batch in tried)
    precise = _in_float64(function, theta, tried) if maps else None
    coarse = max(function.tolerance, KINKED) if precise else function.tolerance
    found: list[RuledLayer] = []
    if rules_allowed and not function.needs_graph and maps:
        found = _agreeing_layers(*(precise or known))
    alike = [layer for layer in found if not layer.common]
    for layers in (found, without_partners_lost(found, alike), []):
        if _agree(*known, layers, coarse) and (not precise or _agree(*precise, layers, precise[0].tolerance)):
            return layers
    return None


def _maps(function: ModelLoss, theta: Tensor, batch: Batch) -> bool:
    """Whether the losses can be mapped over samples: not where the model decides by the data what it does.

    It may then do otherwise with samples that it was not tried on, and read parameters elsewhere than in layers.
    """
    try:
        mapped_losses(function, theta, batch)
    except Exception:  # what cannot be mapped says so in many ways
        return False
    return True


def _in_float64(
    function: ModelLoss, theta: Tensor, batches: Sequence[Batch]
) -> tuple[ModelLoss, Tensor, list[Batch]] | None:
    """Where layers are tried in double precision, in which small parts are known as well as large ones."""
    made = all_in_float64(function, theta, batches)
    if made is None:
        return None
    precise, point, wide = made
    try:
        for batch in wide:
            gradient_of_sum(precise, point, batch.head(1))
    except (RuntimeError, TypeError, ValueError):  # its backward pass is written for its own precision
        return None
    return made


def _agreeing_layers(function: ModelLoss, theta: Tensor, batches: Sequence[Batch]) -> list[RuledLayer]:
    """Those layers that are called alike for all batches, and whose own rows are right."""
    found: list[RuledLayer] | None = None
    for batch in batches:
        layers, met = _met(function, theta, batch)
        sums: dict[int, Tensor] = {}
        wrong = set(range(len(function.sizes)))
        for each in met:
            with contextlib.suppress(Exception):  # a layer is not quite what its type says
                _add(sums, each.rows())
                wrong -= set(each.layer.parameters)
        wrong |= {position for each in met if each.idle for position in each.layer.parameters}
        wrong |= _wrong(function, theta, batch, sums)
        here = without_partners_lost(layers, [layer for layer in layers if wrong.isdisjoint(layer.parameters)])
        found = here if found is None else without_partners_lost(found, [each for each in found if each in here])
    return found or []


def _met(function: ModelLoss, theta: Tensor, batch: Batch) -> tuple[list[RuledLayer], list[Meeting]]:
    """The layers with a rule and what meets there; without the common ones, where repeating those is in the way."""
    try:
        layers = ruled_layers(function, theta, batch)
        with contextlib.suppress(Exception):
            return layers, meetings(function, theta, batch, layers)
        layers = without_partners_lost(layers, [layer for layer in layers if not layer.common])
        return layers, meetings(function, theta, batch, layers)
    except Exception:  # an operation without a rule says so in many ways
        return [], []


def _wrong(function: ModelLoss, theta: Tensor, batch: Batch, found: dict[int, Tensor]) -> set[int]:
    """The positions of the parameters whose rows are not those of the gradients one by one, to rounding."""
    errors: dict[int, list[Tensor]] = {position: [] for position in found}
    sizes: dict[int, list[Tensor]] = {position: [] for position in found}
    norms = []
    for row, gradient in enumerate(function.single_gradients(theta, batch)):
        norms.append(lengths(gradient))
        columns = gradient.split(function.sizes)
        for position, rows in found.items():
            errors[position].append(lengths(rows[row] - columns[position]))
            sizes[position].append(lengths(columns[position]))
    least = ROUNDING * torch.finfo(theta.dtype).eps * torch.stack(norms).amax()
    return {
        position
        for position in found
        if not (torch.stack(errors[position]) <= function.tolerance * torch.stack(sizes[position]) + least).all()
    }


def _agree(
    function: ModelLoss,
    theta: Tensor,
    batches: Sequence[Batch],
    layers: Sequence[RuledLayer],
    tolerance: float,
) -> bool:
    """Whether rows and square norms by the layers' rules are those of the gradients one by one."""
    return all(_agree_on(function, theta, batch, layers, tolerance) for batch in batches)


def _agree_on(
    function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer], tolerance: float
) -> bool:
    try:
        squares = sample_square_norms(function, theta, batch, layers)
        found = sample_gradients(function, theta, batch, layers)
    except Exception:  # an operation without a rule says so in many ways
        return False
    both = []
    for row, gradient in enumerate(function.single_gradients(theta, batch)):
        apart = found[row : row + 1].rows()[0] - gradient
        both.append(torch.stack([lengths(gradient), lengths(apart)]))
    sizes, errors = torch.stack(both).unbind(1)
    largest = sizes.amax()
    of_squares = (squares - sizes.square()).abs()
    # rounding of a much larger sample's arithmetic, and of inner products that cancel
    rows_hold = errors <= tolerance * sizes.clamp_min(1e-3 * float(largest))
    squares_hold = of_squares <= tolerance * largest.square()
    return bool(largest > 0) and bool((rows_hold & squares_hold).all())
