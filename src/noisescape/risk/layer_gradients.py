"""The gradients of a batch's samples by one ordinary backward pass, from what meets at each layer.

Where a loss does not depend on the other samples, the derivative of the summed losses at a layer's output has,
sample by sample, all that a rule for the layer needs (:mod:`~noisescape.risk.layer_rules`).
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from noisescape.risk.factored_gradients import OuterGradients
from noisescape.risk.layer_rules import LayerRule, rule_of
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.samples import Batch


class OtherwiseCalledError(Exception):
    """A layer is called otherwise than when the model was tried: its rule does not hold of these samples."""


@dataclass(frozen=True)
class RuledLayer:
    """A layer with a rule, called once, on all samples together.

    Attributes:
        place: of the layer among all modules.
        module: the layer.
        rule: its kind's.
        positions: of its trainable parameters, by their names in the module, among all that are.
        single: whether it is linear, its weight trainable and its own, and it gets one vector a sample, so that δ
            and a are fewer numbers than δaᵀ.
        common: whether it is an embedding that is looked up once, (1, T), for all samples, as positions are.
    """

    place: int
    module: nn.Module
    rule: LayerRule
    positions: dict[str, int]
    single: bool = False
    common: bool = False

    @property
    def parameters(self) -> tuple[int, ...]:
        """The positions."""
        return tuple(self.positions.values())

    @property
    def key(self) -> tuple[int, bool, bool]:
        """What tells it from others, and how its gradients are found and kept."""
        return self.place, self.single, self.common

    @property
    def partly_frozen(self) -> bool:
        """Whether it has parameters that are not trained."""
        return len(self.positions) < sum(parameter is not None for parameter in self.module._parameters.values())

    @property
    def factor_width(self) -> int:
        """I + O, the numbers that a sample's factors are, if :attr:`single`."""
        return sum(self.module._parameters["weight"].shape)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Meeting:
    """What meets at a layer: a, its input, and δ, the derivative at its output; samples first.

    Idle: the losses do not depend on what it puts out.
    """

    layer: RuledLayer
    given: Tensor
    deltas: Tensor
    idle: bool = False

    def rows(self) -> dict[int, Tensor]:
        """Its parameters' gradients by position, (n, size)."""
        found = self.layer.rule.rows(self.layer.module, self.given, self.deltas)
        return {position: found[name].flatten(1) for name, position in self.layer.positions.items()}

    def square_norms(self) -> Tensor:
        """Over all its trainable parameters, (n,)."""
        if self.layer.partly_frozen:
            return torch.stack([gradient.square().sum(1) for gradient in self.rows().values()]).sum(0)
        return self.layer.rule.square_norms(self.layer.module, self.given, self.deltas)

    def inner_products(self, vectors: Sequence[Tensor]) -> Tensor:
        """With a vector in the shapes of all the trainable parameters, (n,)."""
        own = {name: vectors[position] for name, position in self.layer.positions.items()}
        return self.layer.rule.inner_products(self.layer.module, self.given, self.deltas, own)

    def factors(self) -> OuterGradients:
        """Of a single layer."""
        positions = self.layer.positions
        return OuterGradients(
            positions["weight"], positions.get("bias"), self.given.flatten(1), self.deltas.flatten(1)
        )


@dataclass
class _Call:
    """One call: the input, the output's place in the graph, and its shape.

    Where the output is a view, also that, and how often it had been written to; and whether it has been
    differentiated through.
    """

    given: Tensor
    edge: GradientEdge
    shape: torch.Size
    view: Tensor | None
    version: int
    differentiated: bool = False


@torch.enable_grad()
def meetings(function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]) -> list[Meeting]:
    """What meets at each of these layers at θ, (D,).

    Raises:
        OtherwiseCalledError: a layer is called more than once or never, or not on all samples together.
    """
    if not layers:
        return []
    leaf = theta.detach().requires_grad_()
    with _watching(layers, leaf, batch.size) as calls:
        total = function.losses(leaf, batch).sum()
    first = [_only_call(layer, calls[layer.module], batch.size) for layer in layers]
    if not total.requires_grad:
        deltas: Sequence[Tensor | None] = [None] * len(layers)
    else:
        with function.held(theta):
            deltas = torch.autograd.grad(total, [call.edge for call in first], allow_unused=True)
    return [
        Meeting(layer, call.given, theta.new_zeros(call.shape), idle=True)
        if delta is None
        else Meeting(layer, call.given, delta.detach())
        for layer, call, delta in zip(layers, first, deltas, strict=True)
    ]


def ruled_layers(function: ModelLoss, theta: Tensor, batch: Batch) -> list[RuledLayer]:
    """The layers with a rule that are called once on all samples, and whose trainable parameters nobody else reads.

    What several of them share, as tied embeddings are, all of them must have a rule for.
    """
    uses = Counter(id(parameter) for module in function.modules for parameter in module._parameters.values())
    places = {id(p): position for position, p in enumerate(function.trainable)}
    candidates: list[RuledLayer] = []
    for place, module in enumerate(function.modules):
        rule = rule_of(module)
        own = {name: p for name, p in module._parameters.items() if p is not None}
        trained = {name: p for name, p in own.items() if p.requires_grad}
        if rule is not None and "weight" in own and trained and all(id(p) in places for p in trained.values()):
            positions = {name: places[id(p)] for name, p in trained.items()}
            candidates.append(RuledLayer(place, module, rule, positions))
    if not candidates:
        return []
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad(), _watching(candidates, leaf, batch.size) as calls:
        function.losses(leaf, batch)
    found = []
    for layer in candidates:
        noted = calls[layer.module]
        if type(layer.module) is nn.Embedding and len(noted) == 1 and _is_common(noted[0], batch.size):
            found.append(replace(layer, common=True))
            continue
        with contextlib.suppress(OtherwiseCalledError):
            call = _only_call(layer, noted, batch.size)
            own_alone = all(uses[id(p)] == 1 for p in layer.module._parameters.values())
            linear = type(layer.module) is nn.Linear and "weight" in layer.positions and own_alone
            found.append(replace(layer, single=linear and call.given[0].numel() == call.given.shape[-1]))
    needed = Counter({position: uses[id(p)] for position, p in enumerate(function.trainable)})
    found = _complete(found, needed)
    return _complete(_read_nowhere_else(function, theta, batch, found), needed)


def _read_nowhere_else(
    function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]
) -> list[RuledLayer]:
    """Those of the layers whose parameters the losses depend on through their own calls alone, found by halving."""
    if not _reads_elsewhere(function, theta, batch, layers):
        return list(layers)
    if len(layers) == 1:
        return []
    half = len(layers) // 2
    return [
        layer
        for part in (layers[:half], layers[half:])
        for layer in _read_nowhere_else(function, theta, batch, part)
    ]


def without_partners_lost(before: Sequence[RuledLayer], left: Sequence[RuledLayer]) -> list[RuledLayer]:
    """Of the layers left, those that share no parameter with one that is not."""
    return _complete(left, Counter(position for layer in before for position in layer.parameters))


def _complete(layers: Sequence[RuledLayer], needed: Counter[int]) -> list[RuledLayer]:
    """Those of the layers whose parameters are had by as many of them as needed."""
    left = list(layers)
    while True:
        has = Counter(position for layer in left for position in layer.parameters)
        kept = [layer for layer in left if all(has[each] == needed[each] for each in layer.parameters)]
        if len(kept) == len(left):
            return left
        left = kept


def _only_call(layer: RuledLayer, calls: list[_Call | None], count: int) -> _Call:
    if len(calls) != 1:
        raise OtherwiseCalledError(f"{len(calls)} times, not once")
    call = calls[0]
    if call is None or len(call.given) != count or call.shape[0] != count:
        raise OtherwiseCalledError(f"not on {count} samples along the first dimension")
    if call.view is not None and call.view._version != call.version:
        raise OtherwiseCalledError("its output is a view that is written to, which replaces what was noted")
    if call.differentiated:
        raise OtherwiseCalledError("the model differentiates through it as it is evaluated")
    if layer.single and call.given[0].numel() != call.given.shape[-1]:
        raise OtherwiseCalledError("on several vectors a sample")
    return call


def _note_derivative(call: _Call, _derivative: Tensor) -> None:
    call.differentiated = True


def _is_common(call: _Call | None, count: int) -> bool:
    """Whether a table's places are given once, (1, T), where there are several samples."""
    return call is not None and count > 1 and len(call.given) != count and _lacks_samples(call.given)


def _lacks_samples(given: Tensor) -> bool:
    return given.ndim == 2 and len(given) == 1


@contextlib.contextmanager
def _watching(
    layers: Sequence[RuledLayer], theta: Tensor, count: int
) -> Iterator[dict[nn.Module, list[_Call | None]]]:
    """The calls of each layer; None where one is of another kind than a tensor to a tensor.

    What a common layer puts out is repeated for each of so many samples, so that each has a derivative of its own.
    """
    calls: dict[nn.Module, list[_Call | None]] = {layer.module: [] for layer in layers}
    common = {layer.module for layer in layers if layer.common}
    storage = theta.untyped_storage()._cdata

    def is_part(parameter: Tensor) -> bool:
        """Whether it is what the layer's own call was given: some models call a layer with other weights."""
        return parameter.untyped_storage()._cdata == storage

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor | None:
        usable = (
            len(given) == 1
            and isinstance(given[0], Tensor)
            and isinstance(output, Tensor)
            and given[0].ndim > 0
            and output.ndim > 0
            and output.requires_grad
            and all(is_part(p) for p in module._parameters.values() if p is not None and p.requires_grad)
        )
        if not usable:
            calls[module].append(None)
            return None
        taken = given[0].detach()
        if module in common and _lacks_samples(taken):
            taken = taken.expand(count, taken.shape[-1])
            output = output.expand(count, *output.shape[-2:])
        # the edge, for a later operation may write to the output in place
        view = output.detach() if output._is_view() else None
        call = _Call(taken, get_gradient_edge(output), output.shape, view, output._version)
        calls[module].append(call)
        noting.append(output.register_hook(functools.partial(_note_derivative, call)))
        return output if module in common else None

    noting: list[RemovableHandle] = []
    handles = [layer.module.register_forward_hook(note, prepend=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in [*handles, *noting]:
            handle.remove()


@torch.enable_grad()
def _reads_elsewhere(function: ModelLoss, theta: Tensor, batch: Batch, layers: Sequence[RuledLayer]) -> bool:
    """Whether the losses depend on the layers' parameters other than through their own calls, however little."""
    if not layers:
        return False
    parts = [part.detach().requires_grad_() for part in function.parts(theta)]

    def fixed(module: nn.Module, given: tuple[Tensor, ...], _output: Tensor) -> Any:
        held = module._parameters
        own = dict(held)
        try:
            held.update({name: None if p is None else p.detach() for name, p in own.items()})  # type: ignore[arg-type,misc]
            return module.forward(*given)
        finally:
            held.update(own)

    handles = [layer.module.register_forward_hook(fixed, prepend=True) for layer in layers]
    try:
        total = function.losses_of_parts(parts, batch.inputs, batch.targets).sum()
    finally:
        for handle in handles:
            handle.remove()
    if not total.requires_grad:
        return False
    positions = [position for layer in layers for position in layer.parameters]
    found = torch.autograd.grad(total, [parts[position] for position in positions], allow_unused=True)
    return any(gradient is not None for gradient in found)
