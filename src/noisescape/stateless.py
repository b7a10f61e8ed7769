"""A module evaluated with other tensors in place of its own, and left exactly as it was."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

SMALL_CONTAINER = 256
"""Containers with more items are looked into no further: a vocabulary has no tensors."""
_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, set, deque})


@dataclass(frozen=True)
class _Slot:
    """One parameter of one module: where it hangs, and which part of θ stands in for it (None: it is frozen)."""

    module: nn.Module
    name: str
    part: int | None


class Stateless:
    """Modules whose parameters are exchanged for parts of θ while they are evaluated.

    Each module has its parameters looked up where they hang, so a module or a parameter with two names is exchanged
    once. Frozen parameters are read at each evaluation and take no gradient; buffers, and tensors that are plain
    attributes, are exchanged for copies, since a forward pass may change them. Afterwards every module's
    attributes, parameters, buffers, hooks and lists are what they were, whatever the forward pass did to them, also
    if it raised.

    Args:
        modules: evaluated together.
        trainable: the parameters that θ is made of, in order.

    Attributes:
        modules: those and all their submodules, each once.
        trainable: as given.
        active: how many exchanges are under way.
    """

    def __init__(self, modules: Sequence[nn.Module], trainable: Sequence[nn.Parameter]) -> None:
        distinct = {id(part): part for module in modules for part in module.modules()}
        self.modules = list(distinct.values())
        self.trainable = list(trainable)
        self.active = 0
        order = {id(parameter): position for position, parameter in enumerate(trainable)}
        self._slots = [
            _Slot(module, name, order.get(id(parameter)))
            for module in self.modules
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    @contextlib.contextmanager
    def holding(self, parts: Sequence[Tensor], convert: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
        """Within, the modules hold ``parts`` of θ; frozen tensors and buffers as ``convert`` makes them."""
        change = convert or (lambda tensor: tensor)
        kept = [_Kept(module) for module in self.modules]
        self.active += 1
        try:
            for slot in self._slots:
                held = slot.module._parameters
                frozen = held.get(slot.name)
                if slot.part is not None:
                    held[slot.name] = parts[slot.part]  # type: ignore[assignment]
                elif frozen is not None:
                    held[slot.name] = change(frozen.detach())  # type: ignore[assignment]
            for module in self.modules:
                buffers = module._buffers
                for name, buffer in buffers.items():
                    if buffer is not None:
                        buffers[name] = change(buffer.detach().clone())
                own = module.__dict__
                if own.get("_compiled_call_impl") is not None:
                    own["_compiled_call_impl"] = None  # compiled for the module's own tensors
                for name, value in own.items():
                    if type(value) is Tensor and not value.requires_grad and value.grad_fn is None:
                        own[name] = value.clone()
            yield
        finally:
            self.active -= 1
            for each in kept:
                each.restore()


class _Kept:
    """All that a module's ``__dict__`` held, down to the items of its containers."""

    __slots__ = ("attributes", "empty", "filled", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.empty: list[Any] = []
        self.filled: list[tuple[Any, Any]] = []
        self._keep(self.attributes.values())

    def _keep(self, values: Iterable[Any], depth: int = 3) -> None:
        for value in values:
            if type(value) in _CONTAINERS:
                if not value:
                    self.empty.append(value)
                    continue
                self.filled.append((value, value.copy()))
                if depth > 1 and len(value) <= SMALL_CONTAINER:
                    self._keep(value.values() if isinstance(value, dict) else value, depth - 1)

    def restore(self) -> None:
        own = self.module.__dict__
        if own.keys() != self.attributes.keys() or any(own[k] is not v for k, v in self.attributes.items()):
            own.clear()
            own.update(self.attributes)
        for container in self.empty:
            if container:
                container.clear()
        for container, before in self.filled:
            if isinstance(container, dict):
                if not _same_items(container, before):
                    container.clear()
                    container.update(before)
            elif isinstance(container, set):
                if container != before:
                    container.clear()
                    container.update(before)
            elif len(container) != len(before) or any(a is not b for a, b in zip(container, before, strict=True)):
                container.clear()
                container.extend(before)


def _same_items(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key] is value for key, value in other.items())


def bare(model: nn.Module) -> nn.Module:
    """The module inside wrappers that only distribute or compile it: what they wrap is evaluated directly."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":  # of torch.compile, whose import alone takes seconds
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
