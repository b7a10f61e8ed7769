"""Parameters that several ranks share, as ``fully_shard`` leaves them: gathered, evaluated without its hooks."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    known = sys.modules.get("torch.distributed.tensor")  # there is none if nobody has imported them
    return known is not None and isinstance(tensor, known.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor in one piece, on every rank: all ranks must ask at once."""
    if not is_sharded(tensor):
        return tensor
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def without_sharding_hooks(module: nn.Module) -> None:
    """Let a module that ``fully_shard`` has treated evaluate what it holds, and not its own shards put together."""
    own = module.__dict__
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks: OrderedDict[int, Any] = own[name]
        if any(map(_shards, hooks.values())):
            own[name] = OrderedDict((key, hook) for key, hook in hooks.items() if not _shards(hook))


def _shards(hook: Any) -> bool:
    """Whether a hook is of ``fully_shard``: a method of its state, perhaps wrapped for a group of modules."""
    while hook is not None:
        if type(getattr(hook, "__self__", None)).__name__ == "FSDPState":
            return True
        hook = getattr(hook, "__wrapped__", None)
    return False
