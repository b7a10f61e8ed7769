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


def vector_layers(
    modules: Sequence[nn.Module], trainable: Sequence[nn.Parameter], evaluate: Callable[[], Any]
) -> list[LinearLayer]:
    """Linear layers called once, with a single row, when a single sample is evaluated.

    Their parameters must be trainable and nobody else's.

    Args:
        modules: all there are, each once.
        trainable: the parameters that θ is made of, in order.
        evaluate: evaluates a single sample.
    """
    uses = Counter(id(parameter) for module in modules for parameter in module._parameters.values())
    positions = {id(p): position for position, p in enumerate(trainable) if uses[id(p)] == 1}
    candidates = [module for module in modules if type(module) is nn.Linear]
    layers = {module: [p for p in (module.weight, module.bias) if p is not None] for module in candidates}
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
        own = layers[module]
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
            if number in seen or given[0].ndim != 2 or len(given[0]) != 1:
                raise RuntimeError("a linear layer is called otherwise than once, with one row, for some samples")
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
