"""By how much a gradient scaler had multiplied the gradients of a step."""

from __future__ import annotations

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from noisescape.training.call_stack import running

DEPTH = 40
"""Frames looked through; Lightning and accelerate have about ten between the scaler and its optimiser."""


def scale_of_step(optimizer: Optimizer, scaler: GradScaler | None) -> Tensor | float:
    """The scale of the gradients that ``optimizer`` is stepping on; 1 without a scaler. To be called in its hooks.

    A scaler gives itself away to fused optimisers only (``grad_scale``). To others it leaves no trace, so the one
    in whose ``step`` the optimiser runs is found on the stack. Nothing here waits for the device.

    Args:
        optimizer: within its ``step``.
        scaler: where it is known.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if isinstance(scale, Tensor):
        return scale.clone()
    scaler = scaler or running(GradScaler, DEPTH, methods=("step", "_maybe_opt_step"))
    if scaler is None or not scaler.is_enabled():
        return 1.0
    held = getattr(scaler, "_scale", None)  # what get_scale() would wait for
    return held.clone() if isinstance(held, Tensor) else float(scaler.get_scale())
