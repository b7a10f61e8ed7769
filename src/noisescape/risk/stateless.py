"""A module evaluated with other tensors in place of its own, and left exactly as it was."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from noisescape.errors import InvalidValueError
from noisescape.risk.whole_parameters import without_sharding_hooks

SMALL_CONTAINER = 256
"""Containers with more items are looked into no further: a vocabulary has no tensors."""
SMALL_ARRAY = 2**20
_LIBRARIES = frozenset(
    {"builtins", "torch", "numpy", "collections", "weakref", "functools", "transformers", "peft"}
)
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
    attributes or lie in containers, are exchanged for copies, since a forward pass may change them. Afterwards
    every module's attributes, parameters, buffers, hooks and lists are what they were, whatever the forward pass
    did to them, also if it raised.

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
        for module in list(distinct.values()):  # a target network in a list, say
            for held in _modules_in(module.__dict__.values()):
                distinct |= {id(part): part for part in held.modules() if id(part) not in distinct}
        self.modules = list(distinct.values())
        self.trainable = list(trainable)
        self.active = 0
        self._structure = [(module, dict(module._modules), set(module._parameters)) for module in self.modules]
        order = {id(parameter): position for position, parameter in enumerate(trainable)}
        self._slots = [
            _Slot(module, name, order.get(id(parameter)))
            for module in self.modules
            for name, parameter in module._parameters.items()
            # a trainable one that θ lacks stays, so that its part in the losses is noticed
            if parameter is not None and (id(parameter) in order or not parameter.requires_grad)
        ]

    def check_structure(self) -> None:
        """Refuse modules to which others were added since, or parameters.

        Raises:
            ValueError: naming where.
        """
        for module, submodules, names in self._structure:
            if module._modules != submodules or module._parameters.keys() != names:
                raise InvalidValueError(
                    f"the model's structure has changed since the risk was built (in {type(module).__name__}: "
                    "layers or parameters were replaced, added or removed), so θ is no longer what it was; build "
                    "the risk anew"
                )

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
            for each in kept:
                each.exchange_tensors(change)
            for module in self.modules:
                without_sharding_hooks(module)
            yield
        finally:
            self.active -= 1
            for each in kept:
                each.restore()


class _Kept:
    """All that a module's ``__dict__`` held, down to the items of its containers and of plain objects."""

    __slots__ = ("arrays", "attributes", "empty", "filled", "module", "objects")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.empty: list[Any] = []
        self.filled: list[tuple[Any, Any]] = []
        self.objects: list[tuple[Any, dict[str, Any]]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._keep(self.attributes.values())

    def _keep(self, values: Iterable[Any], depth: int = 3) -> None:
        for value in values:
            kind = type(value)
            if kind in _CONTAINERS:
                if not value:
                    self.empty.append(value)
                    continue
                self.filled.append((value, value.copy()))
                if depth > 1 and len(value) <= SMALL_CONTAINER:
                    self._keep(value.values() if isinstance(value, dict) else value, depth - 1)
            elif kind is np.ndarray:
                if value.size <= SMALL_ARRAY:
                    self.arrays.append((value, value.copy()))
            elif depth > 1 and _is_plain_object(value):
                self.objects.append((value, dict(value.__dict__)))
                self._keep(value.__dict__.values(), depth - 1)

    def exchange_tensors(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put copies, as ``change`` makes them, in place of all tensors that are no parameters or buffers."""
        own = self.module.__dict__
        for name, value in self.attributes.items():
            if _is_constant(value):
                own[name] = change(value.clone())
            elif type(value) is tuple and any(map(_is_constant, value)):
                own[name] = tuple(change(item.clone()) if _is_constant(item) else item for item in value)
        for container, before in self.filled:
            if isinstance(container, dict):
                for key, item in before.items():
                    if _is_constant(item):
                        container[key] = change(item.clone())
            elif not isinstance(container, set):
                for place, item in enumerate(before):
                    if _is_constant(item):
                        container[place] = change(item.clone())
        for each, attributes in self.objects:
            for name, value in attributes.items():
                if _is_constant(value):
                    each.__dict__[name] = change(value.clone())

    def restore(self) -> None:
        own = self.module.__dict__
        _restore_dict(own, self.attributes)
        for each, attributes in self.objects:
            _restore_dict(each.__dict__, attributes)
        for container in self.empty:
            if container:
                container.clear()
        for container, before in self.filled:
            if isinstance(container, dict):
                _restore_dict(container, before)
            elif isinstance(container, set):
                if container != before:
                    container.clear()
                    container.update(before)
            elif len(container) != len(before) or any(a is not b for a, b in zip(container, before, strict=True)):
                container.clear()
                container.extend(before)
        for array, values in self.arrays:
            if not np.array_equal(array, values, equal_nan=array.dtype.kind in "fc"):
                array[...] = values


def _modules_in(values: Iterable[Any], depth: int = 2) -> Iterator[nn.Module]:
    """Modules that hang in containers rather than being registered."""
    for value in values:
        if type(value) in (list, tuple, dict, OrderedDict, deque) and len(value) <= SMALL_CONTAINER:
            items = value.values() if isinstance(value, dict) else value
            yield from (item for item in items if isinstance(item, nn.Module))
            if depth > 1:
                yield from _modules_in(items, depth - 1)


def _restore_dict(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    if not _same_items(held, before):
        held.clear()
        held.update(before)


def _is_constant(value: Any) -> bool:
    """A tensor that is neither trained nor part of a graph: state of the module's own."""
    return type(value) is Tensor and not value.requires_grad and value.grad_fn is None


def _is_plain_object(value: Any) -> bool:
    """An object of somebody's own class, that holds state: no module, function, class, library object."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in _LIBRARIES or isinstance(value, (nn.Module, type, ModuleType)):
        return False
    return hasattr(value, "__dict__") and not callable(value)


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
