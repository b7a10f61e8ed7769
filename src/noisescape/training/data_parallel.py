"""Over which processes a model's gradients are averaged, and whether each holds all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from noisescape.errors import InvalidValueError

MEANS = ("allreduce_hook", "fp16_compress_hook", "bf16_compress_hook", "_reducer_allreduce_and_upcast_hook")
"""Communication hooks of DistributedDataParallel that give the mean, but for rounding."""


@dataclass(frozen=True)
class DataParallel:
    """The ranks among which the samples of a step are divided.

    Attributes:
        ranks: R; the step's gradient is the mean of theirs.
        copies: how many ranks hold each entry of it: R where it is replicated, 1 where it is sharded.
        group: the processes; None: the default ones, or one alone.
        averager: what averages, where it is a module.
    """

    ranks: int = 1
    copies: int = 1
    group: dist.ProcessGroup | None = None
    averager: nn.Module | None = None

    @property
    def joins(self) -> bool:
        """Whether ranks may end at different steps (``model.join()``), so that they must exchange nothing."""
        config = getattr(self.averager, "_join_config", None)
        return bool(getattr(config, "enable", False))

    @property
    def fault(self) -> str | None:
        """Why the averaged gradient is not the mean of the ranks'."""
        for hook, _ in getattr(self.averager, "_comm_hooks", ()):
            name = getattr(hook, "__name__", type(hook).__name__)
            if name not in MEANS:
                return (
                    f"gradients are averaged by the communication hook {name}, whose result need not be their "
                    "mean: train without it"
                )
        if isinstance(self.averager, nn.Module) and any(map(_divided, self.averager.modules())):
            return (
                "set_gradient_divide_factor makes averaged gradients other than the ranks' mean: train without it"
            )
        return None

    @property
    def sharded(self) -> bool:
        """Whether a rank holds only its shard of the step's gradient."""
        return self.copies < self.ranks

    def sum(self, values: Tensor) -> Tensor:
        """Σ over ranks; collective."""
        if self.ranks > 1:
            dist.all_reduce(values, group=self.group)
        return values


def wrapped(model: nn.Module) -> list[nn.Module]:
    """The model and what it wraps, outermost first: compiled, distributed, bare."""
    found = [model]
    while True:
        last = found[-1]
        inner = getattr(last, "_orig_mod", None)
        if inner is None and isinstance(last, (DistributedDataParallel, nn.DataParallel)):
            inner = last.module
        if not isinstance(inner, nn.Module):
            return found
        found.append(inner)


def data_parallel(model: nn.Module, *, alone: bool = False) -> DataParallel:
    """How a model's gradients are averaged.

    Args:
        model: as the training loop calls it, in its wrappers.
        alone: whether this process trains by itself although others run.

    Raises:
        ValueError: a kind of parallelism whose gradients cannot be read, or processes with a model that does not
            say how it averages.
    """
    layers = wrapped(model)
    for module in layers:
        if isinstance(module, nn.DataParallel):
            raise InvalidValueError(
                "a DataParallel module sums its devices' gradients inside one backward pass: use "
                "DistributedDataParallel, or accumulate over micro-steps on the module inside"
            )
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise InvalidValueError(
            "FullyShardedDataParallel keeps its gradients in flat shards that cannot be read per group: use "
            "fully_shard (FSDP2)"
        )
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return _sharded(model)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise InvalidValueError(
            "parameters are DTensors without fully_shard (tensor parallelism), whose gradients are not those of "
            "independent samples: monitor a data-parallel run"
        )
    for module in layers:
        if isinstance(module, DistributedDataParallel):
            ranks = dist.get_world_size(module.process_group)
            return DataParallel(ranks, ranks, module.process_group, module)
    if not alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise InvalidValueError(
            f"{dist.get_world_size()} processes run, but the model is neither DistributedDataParallel nor "
            "fully_shard: give the monitor the wrapped model that the loop calls, or alone=True where this process "
            "trains by itself"
        )
    return DataParallel()


def _sharded(model: nn.Module) -> DataParallel:
    replicas = set()
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise InvalidValueError(f"'{name}' is outside of fully_shard: apply fully_shard to the whole model too")
        mesh, placements = parameter.device_mesh, parameter.placements
        shards = [size for size, kind in zip(mesh.shape, placements, strict=True) if isinstance(kind, Shard)]
        if len(shards) != 1 or not all(isinstance(kind, (Shard, Replicate)) for kind in placements):
            raise InvalidValueError(
                f"'{name}' is sharded as {placements}: beside data parallelism (one sharded dimension, and at most "
                "replicas) nothing can be read"
            )
        if mesh.size() != dist.get_world_size():
            raise InvalidValueError(
                f"'{name}' lives on {mesh.size()} of {dist.get_world_size()} processes: shard over all of them"
            )
        replicas.add(mesh.size() // shards[0])
    (copies,) = replicas if len(replicas) == 1 else (0,)
    if not copies:
        raise InvalidValueError("parameters have different numbers of replicas: use one mesh for the whole model")
    return DataParallel(dist.get_world_size(), copies, averager=model)


def _divided(module: nn.Module) -> bool:
    """Whether fully_shard was told to divide its sums over ranks by another number than theirs."""
    if not isinstance(module, FSDPModule):
        return False
    state = module._get_fsdp_state()  # noqa: SLF001  torch has no public way
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    return any(getattr(group, "gradient_divide_factor", None) is not None for group in groups)
