"""The linear layers of a module that get one vector a sample, and what passes through them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LinearLayer:
    """A layer, and which of the trainable parameters, by position, are its weight and bias."""

    module: nn.Linear
    weight: int
    bias: int | None

    @property
    def parameters(self) -> list[int]:
        """The positions of both."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def width(self) -> int:
        """I + O, the numbers that a sample's gradient is made of."""
        return self.module.in_features + self.module.out_features


def vector_layers(model: nn.Module, trainable: Sequence[str], evaluate: Callable[[], Any]) -> list[LinearLayer]:
    """Linear layers called once, with a single row, when a single sample is evaluated.

    Their parameters must be trainable and nobody else's.
    """
    every = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for _, parameter in every)
    order = {name: position for position, name in enumerate(trainable)}
    positions = {id(p): order[name] for name, p in every if name in order and uses[id(p)] == 1}
    candidates = [module for module in model.modules() if type(module) is nn.Linear]
    calls: dict[nn.Module, list[Tensor]] = {module: [] for module in candidates}

    def note(module: nn.Module, given: tuple[Any, ...], _output: Tensor) -> None:
        calls[module].extend(given)

    handles = [module.register_forward_hook(note) for module in candidates]
    try:
        evaluate()
    finally:
        for handle in handles:
            handle.remove()

    found = []
    for module in candidates:
        given = calls[module]
        own = [p for p in (module.weight, module.bias) if p is not None]
        if len(given) == 1 and given[0].ndim == 2 and len(given[0]) == 1 and all(id(p) in positions for p in own):
            bias = None if module.bias is None else positions[id(module.bias)]
            found.append(LinearLayer(module, positions[id(module.weight)], bias))
    return found


@contextlib.contextmanager
def offset_outputs(layers: Sequence[LinearLayer], offsets: Sequence[Tensor]) -> Iterator[dict[int, Tensor]]:
    """Add an offset, (O,), to the output of each layer; collects the single row that each layer gets, (I,)."""
    seen: dict[int, Tensor] = {}

    def hook_of(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen[number] = given[0][0]
            return output + offsets[number]

        return hook

    handles = [
        layer.module.register_forward_hook(hook_of(number), prepend=True) for number, layer in enumerate(layers)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
