"""The diagonal metric in which an adaptive optimiser steps, from the state it keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def preconditioner(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Tensor | None:
    """The diagonal D, such that the step of a steady gradient g is −η·D·g; of the parameter's shape.

    From the second moments of the steps before, so that it is independent of the present gradients:
    D = 1/(√v̂ + ε) for Adam, AdamW and NAdam, with v̂ = v/(1 − β₂^t) or, with ``amsgrad``, its running maximum;
    the same of ``square_avg`` for RMSprop and of ``sum`` for Adagrad. RAdam's differs from step to step: not taken.

    Returns:
        D (with a last dimension for real and imaginary parts, where the parameter is complex), or None where the
        optimiser is not exactly one of these (a subclass may step otherwise), or has not stepped yet.
    """
    state = optimizer.state.get(parameter, {})
    if type(optimizer) is torch.optim.RMSprop:
        if "square_avg" not in state:
            return None
        second = _real(state["square_avg"])
        if group["centered"]:
            mean = _real(state["grad_avg"])
            second = second.addcmul(mean, mean, value=-1)
    elif type(optimizer) is torch.optim.Adagrad:
        if "sum" not in state or not float(state["step"]) > 0:
            return None
        second = _real(state["sum"])
    elif type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam):
        if "exp_avg_sq" not in state:
            return None
        second = _real(state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"])
        steps = state["step"]  # on the host, or it must not be waited for
        steps = steps.double() if isinstance(steps, Tensor) and steps.device.type != "cpu" else float(steps)
        correction = 1 - group["betas"][1] ** steps
        return second.div(correction).sqrt_().add_(group["eps"]).reciprocal_()
    else:
        return None
    return second.sqrt().add_(group["eps"]).reciprocal_()


def _real(second: Tensor) -> Tensor:
    return torch.view_as_real(second) if second.is_complex() else second
