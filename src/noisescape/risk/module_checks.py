"""What a module must be for its losses to be a function of θ and one sample; anything else is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from noisescape.errors import BatchCouplingError, InvalidTypeError, InvalidValueError
from noisescape.risk.whole_parameters import is_sharded

RANDOM = (_BatchNorm, _DropoutNd, nn.MultiheadAttention, nn.RNNBase)
"""Kinds of modules that may draw, or look at the rest of a batch."""


def check_kind(model: nn.Module) -> None:
    """Refuse modules whose tensors cannot be exchanged, or are not there yet."""
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise InvalidTypeError(
            "the model is a TorchScript module, whose tensors are compiled in; pass the nn.Module it was made from"
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise InvalidTypeError(
            "the model is in FullyShardedDataParallel (FSDP1), whose parameters are flat and hidden; use "
            "fully_shard (FSDP2), or pass a whole model (FullyShardedDataParallel.summon_full_params)"
        )
    lazy = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if lazy:
        raise InvalidValueError(
            f"the model has uninitialised (lazy) tensors: {', '.join(lazy[:3])}; run one batch through it first, "
            "model(inputs), so that their shapes are known"
        )
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise InvalidTypeError(
            f"submodule '{scripted[0]}' is TorchScript, whose tensors are compiled in; use the nn.Module it was "
            "made from"
        )


def check_buffers(model: nn.Module) -> None:
    """Refuse trainable buffers; warn of hooks on gradients, which do not run here."""
    trained = [name for name, buffer in model.named_buffers() if buffer.requires_grad]
    if trained:
        raise InvalidValueError(
            f"the buffers {', '.join(trained[:3])} require a gradient, but θ is made of parameters; register them "
            "as nn.Parameter, or hold them fixed with requires_grad_(False)"
        )
    hooked = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and not all(getattr(hook, "only_reads", False) for hook in (parameter._backward_hooks or {}).values())
    ]
    if hooked:
        warnings.warn(
            f"parameters have gradient hooks ({', '.join(hooked[:3])}), which run in training but not here: what "
            "they change (masks, scaling) is missing from these gradients",
            UserWarning,
            stacklevel=4,
        )


def check_sharded(model: nn.Module) -> None:
    """Refuse parameters whose whole no rank can put together by itself at any time."""
    frozen = [name for name, p in model.named_parameters() if is_sharded(p) and not p.requires_grad]
    if frozen:
        raise InvalidValueError(
            f"the parameters {', '.join(frozen[:3])} are frozen and lie with several ranks, and would have to be "
            "gathered for every batch; shard the trainable ones alone, or pass a whole model "
            "(get_model_state_dict with full_state_dict=True)"
        )


def check_own_parameters(loss: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
    """Refuse a loss with trainable parameters that θ would lack."""
    known = {id(parameter) for parameter in trainable.values()}
    own = [name for name, p in loss.named_parameters() if p.requires_grad and id(p) not in known]
    if own:
        raise InvalidValueError(
            f"the loss has trainable parameters of its own ({', '.join(own[:3])}), which θ would lack: derivatives "
            "with respect to them would be missing. Make them part of the model (a module that holds both and "
            "whose forward returns what the loss needs), or hold them fixed: loss.requires_grad_(False)"
        )


def check_uniform(model: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
    """Refuse several devices or dtypes, and complex parameters."""
    devices = sorted({str(t.device) for t in [*model.parameters(), *model.buffers()]})
    if len(devices) > 1:
        raise InvalidValueError(
            f"mixed devices: the model's tensors are on {', '.join(devices)}; use model.to(...)"
        )
    compound = [name for name, p in trainable.items() if p.is_complex()]
    if compound:
        raise InvalidValueError(
            f"the trainable parameters {', '.join(compound[:3])} are complex; θ is a vector of real numbers. Keep "
            "real and imaginary parts as one real parameter of shape (…, 2), nn.Parameter(torch.view_as_real(w)), "
            "and make the complex tensor in forward with torch.view_as_complex"
        )
    dtypes = sorted({str(p.dtype) for p in trainable.values()})
    if len(dtypes) > 1:
        raise InvalidValueError(
            f"the trainable parameters have several dtypes ({', '.join(dtypes)}); one flat vector needs one: "
            "use model.to(dtype)"
        )


def check_deterministic(module: nn.Module, model: nn.Module) -> None:
    """Refuse batch statistics and active dropout."""
    if isinstance(module, _BatchNorm):
        if module.training or not module.track_running_stats:
            raise BatchCouplingError(
                f"{_where(module, model)} uses batch statistics, so a sample's loss depends on its batch and there "
                "is no per-sample gradient; call model.eval() (with track_running_stats=True) or use GroupNorm"
            )
        return
    rate = module.p if isinstance(module, _DropoutNd) else module.dropout
    if module.training and rate > 0:  # type: ignore[operator]
        raise BatchCouplingError(
            f"{_where(module, model)} drops units at random (p = {rate:g}): the loss is not a function of θ; call "
            "model.eval() or set p = 0"
        )


def _where(module: nn.Module, model: nn.Module) -> str:
    name = next(name for name, each in model.named_modules() if each is module)
    return f"{type(module).__name__} '{name}'" if name else type(module).__name__
