"""All of a module at one moment, to be compared with what it is later."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _value(thing: Any) -> Any:
    """A copy that shows later whether a tensor, or a tensor in a container, has changed."""
    if isinstance(thing, Tensor):
        return thing.detach().clone()
    if isinstance(thing, dict):
        return {key: (item, _value(item)) for key, item in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [(item, _value(item)) for item in thing]
    return None


def _same(thing: Any, kept: Any, value: Any) -> bool:
    if isinstance(thing, Tensor):
        return thing is kept and torch.equal(thing.detach(), value)
    if isinstance(thing, dict):
        return (
            thing is kept
            and list(thing) == list(value)
            and all(_same(item, *value[key]) for key, item in thing.items())
        )
    if isinstance(thing, (list, tuple)):
        return (
            thing is kept
            and len(thing) == len(value)
            and all(_same(item, *was) for item, was in zip(thing, value, strict=True))
        )
    if isinstance(thing, (bool, int, float, str)):
        return type(thing) is type(kept) and thing == kept
    return thing is kept


class Snapshot:
    """All of a module: every object by identity, every tensor by its bits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.things = self._things()
        self.values = {name: _value(thing) for name, thing in self.things.items()}
        self.flags = self._flags()
        self.copies = _works(copy.deepcopy, model)
        self.saves = _works(_saved, model)

    def _things(self) -> dict[str, Any]:
        model, found = self.model, {}
        for name, module in model.named_modules(remove_duplicate=False):
            found[f"module {name}"] = module
            for key, thing in vars(module).items():  # parameters, buffers, hooks, flags and plain attributes
                found[f"{name}.{key}"] = thing
        for name, parameter in model.named_parameters(remove_duplicate=False):
            found[f"parameter {name}"] = parameter
            found[f"gradient of {name}"] = parameter.grad
            found[f"hooks of {name}"] = parameter._backward_hooks
        for name, buffer in model.named_buffers(remove_duplicate=False):
            found[f"buffer {name}"] = buffer
        return found

    def _flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            flags[name] = (type(parameter), parameter.requires_grad, parameter.is_leaf, parameter._version)
        for name, module in self.model.named_modules(remove_duplicate=False):
            flags[f"module {name}"] = (type(module), module.training)
        flags["state"] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return flags

    def damage(self) -> list[str]:
        """Names of what is no longer what it was."""
        try:
            return self._differences()
        except RuntimeError as error:  # a tensor of some transform has stayed behind
            return [f"cannot be read any more: {error}"]

    def _differences(self) -> list[str]:
        things, flags = self._things(), self._flags()
        found = [f"{name} is gone" for name in self.things if name not in things]
        found += [f"{name} is new" for name in things if name not in self.things]
        common = [name for name in things if name in self.things]
        found += [name for name in common if not _same(things[name], self.things[name], self.values[name])]
        state, was = flags.pop("state"), dict(self.flags)
        old = was.pop("state")
        found += [f"flags of {name}" for name in {*flags, *was} if flags.get(name) != was.get(name)]
        if list(state) != list(old) or any(not torch.equal(state[name], old[name]) for name in old):
            found.append("state dict")
        if self.copies and not _works(copy.deepcopy, self.model):
            found.append("deepcopy")
        if self.saves and not _works(_saved, self.model):
            found.append("torch.save")
        return found


def _works(use: Callable[[nn.Module], object], model: nn.Module) -> bool:
    try:
        use(model)
    except Exception:  # local functions cannot be pickled, a result of old weight norm not be copied
        return False
    return True


def _saved(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()
