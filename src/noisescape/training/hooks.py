"""Ways to listen to a module and to autograd that leave no trace in what the user copies, saves or compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ModuleHook:
    """A module's hook that calls ``listen`` and changes nothing.

    Compiled code passes it by. A module that is deep-copied or pickled while it is on goes without what it
    belongs to: the copy's hook is this same one, which is told what module it is called for; the pickled one does
    nothing.
    """

    def __init__(self, listen: Callable[..., None]) -> None:
        self._listen = listen

    def __call__(self, *called: Any) -> None:
        """As the module's hook."""
        if not torch.compiler.is_compiling():
            self._listen(*called)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleHook:
        return self

    def __reduce__(self) -> tuple[type[ModuleHook], tuple[Callable[..., None]]]:
        return ModuleHook, (nothing,)


class GradientHook:
    """A parameter's hook that leaves its gradient as it is wherever gradients are accumulated."""

    only_reads = True
    """So that a risk built of a monitored model does not warn of it."""

    def __init__(self, see: Callable[[Tensor], Tensor | None]) -> None:
        self._see = see

    def __call__(self, gradient: Tensor) -> Tensor | None:
        """As the parameter's hook."""
        return self._see(gradient)


def nothing(*called: Any) -> None:
    """What a saved hook does."""


def backward_pass() -> int:
    """A number for the backward pass that is going on; −1 where none is."""
    return int(torch._C._current_graph_task_id())  # noqa: SLF001  torch has no public way


def when_backward_ends(action: Callable[[], None]) -> None:
    """Call when the present backward pass has ended, after what wrappers do then: averaging over ranks."""
    engine = torch.autograd.Variable._execution_engine  # noqa: SLF001  torch has no public way
    # callbacks run in the order they were queued; one queued by a callback comes after all of them
    engine.queue_callback(lambda: engine.queue_callback(action))
