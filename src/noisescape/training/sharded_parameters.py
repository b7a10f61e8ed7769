"""Where parameters that fully_shard divides are whole: in the modules, from a forward pass to its backward."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

Places = dict[tuple[int, str], tuple[int, Tensor]]
"""By holder and name: a parameter's group, and its shard as the optimiser has it."""


def places(model: nn.Module, optimizer: Optimizer) -> Places:
    """Of all parameters of the optimiser; to be called while they are sharded."""
    groups = {
        id(parameter): index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]
    }
    return {
        (id(module), name): (groups[id(parameter)], parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in groups
    }


def own_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Those in ``module`` but not in a sharded module within it: holder, name, and the parameter as it is now."""
    yield from ((module, name, parameter) for name, parameter in module.named_parameters(recurse=False))
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield from own_parameters(child)
