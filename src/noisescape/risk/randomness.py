"""Whether a computation draws random numbers, and undoing that it did."""

from __future__ import annotations

import contextlib
import functools
import random
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

State = list[tuple[str, Any]]
_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
SMALL_CONTAINER = 256
MOST_LOOKED_AT = 5000
"""Bounds on where generators are looked for."""


class Generators:
    """Every generator a model can draw from: the global ones of PyTorch, NumPy and Python, and any it can reach.

    Args:
        modules: whose attributes and forward passes are searched.
        functions: the loss, say; closures and the globals that its code names are searched, too.
    """

    def __init__(self, modules: Iterable[nn.Module], *functions: Any) -> None:
        modules = list(modules)
        code = [getattr(type(module), "forward", None) for module in modules]
        held = [value for module in modules for value in module.__dict__.values()]
        self._held = _generators_in([*held, *code, *functions])

    def state(self) -> State:
        """Of all of them, by name."""
        found: State = [
            ("torch", torch.get_rng_state()),
            ("numpy.random", np.random.get_state()),  # noqa: NPY002  (the global one is what a model may use)
            ("random", random.getstate()),
        ]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found.append(("torch.cuda", torch.cuda.get_rng_state_all()))
        return found + [(f"a {type(each).__name__} of its own", _state_of(each)) for each in self._held]

    def drawn_from(self, before: State) -> list[str]:
        """Names of those that are not in the state they were in."""
        return [name for (name, now), (_, then) in zip(self.state(), before, strict=True) if not _equal(now, then)]

    def restore(self, state: State) -> None:
        """Put all of them back."""
        names = dict(state[: len(state) - len(self._held)])
        torch.set_rng_state(names["torch"])
        np.random.set_state(names["numpy.random"])  # noqa: NPY002
        random.setstate(names["random"])
        if "torch.cuda" in names:
            torch.cuda.set_rng_state_all(names["torch.cuda"])
        for each, (_, held) in zip(self._held, state[len(state) - len(self._held) :], strict=True):
            if isinstance(each, torch.Generator):
                each.set_state(held)
            elif isinstance(each, np.random.Generator):
                each.bit_generator.state = held
            elif isinstance(each, np.random.RandomState):
                each.set_state(held)
            else:
                each.setstate(held)

    @contextlib.contextmanager
    def kept(self) -> Iterator[State]:
        """Within, draws leave no trace; yields the state at the start."""
        before = self.state()
        try:
            yield before
        finally:
            self.restore(before)


def _generators_in(roots: Iterable[Any]) -> list[Any]:
    """Those reachable through containers, closures, defaults, bound arguments and the globals that code names."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = list(roots)
    while waiting and len(seen) < MOST_LOOKED_AT:
        value = waiting.pop()
        if id(value) in seen or value is None:
            continue
        seen.add(id(value))
        if isinstance(value, _KINDS):
            if value is not torch.default_generator:
                found.append(value)
        elif isinstance(value, (list, tuple, set)):
            waiting += list(value)[:SMALL_CONTAINER]
        elif isinstance(value, dict):
            waiting += list(value.values())[:SMALL_CONTAINER]
        elif isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            waiting += [value.__func__, *getattr(value.__self__, "__dict__", {}).values()]
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                with contextlib.suppress(ValueError):  # not yet assigned
                    waiting.append(cell.cell_contents)
            named = (value.__globals__.get(name) for name in value.__code__.co_names)
            waiting += [each for each in named if isinstance(each, (*_KINDS, list, tuple, dict))]
            waiting += value.__defaults__ or ()
    return found


def _state_of(generator: Any) -> Any:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
