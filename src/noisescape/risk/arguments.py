"""What a risk accepts as θ, as directions and as sizes; anything else is refused before work starts."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescape.errors import FailedError, InvalidIndexError, InvalidTypeError, InvalidValueError


def check_theta(
    theta: Tensor,
    dimension: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    replicas: bool = True,
    name: str = "θ",
) -> None:
    """Refuse anything but (D,), or (R, D) where replicas are taken, of the risk's dtype and device."""
    if not isinstance(theta, Tensor):
        raise InvalidTypeError(
            f"{name} must be a flat torch.Tensor (risk.parameters()), not {type(theta).__name__}"
        )
    if theta.ndim not in ((1, 2) if replicas else (1,)) or theta.shape[-1] != dimension:
        allowed = f"({dimension},)" + (f" or (R, {dimension})" if replicas else "")
        raise InvalidValueError(f"{name} must have shape {allowed}, not {tuple(theta.shape)}")
    if theta.dtype != dtype:
        raise InvalidValueError(
            f"{name} is {theta.dtype} but the risk is {dtype}; "
            f"convert one: theta.to({dtype}) or risk.to({theta.dtype})"
        )
    if theta.device != device:
        raise InvalidValueError(
            f"mixed devices: {name} is on {theta.device}, the risk on {device}; use theta.to('{device}')"
        )
    if torch.is_inference_mode_enabled() or theta.is_inference():
        raise FailedError("inference mode records no derivatives: leave it, and clone a θ that was made in it")


def check_directions(theta: Tensor, directions: Tensor) -> None:
    """Refuse directions that do not fit θ: (D,) or (D, K) for a single one, (R, D) for replicas."""
    dimension = theta.shape[-1]
    if theta.ndim == 2:
        if directions.shape != theta.shape:
            raise InvalidValueError(
                f"with replicas, directions match θ's shape {tuple(theta.shape)}, not {tuple(directions.shape)}"
            )
    elif directions.ndim not in (1, 2) or directions.shape[0] != dimension:
        raise InvalidValueError(
            f"directions must have shape ({dimension},) or ({dimension}, K), not {tuple(directions.shape)}"
        )


def check_indices(indices: Tensor, count: int) -> None:
    """Refuse anything but whole numbers within 0 .. N − 1, at least one of them."""
    if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
        found = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise InvalidTypeError(f"indices of samples must be a tensor of whole numbers, not {found}")
    if indices.numel() == 0:
        raise InvalidValueError("there are no indices: at least one sample is needed")
    if int(indices.min()) < 0 or int(indices.max()) >= count:
        raise InvalidIndexError(f"indices of samples must lie in 0..{count - 1}")


def check_positive(name: str, value: int | None) -> int | None:
    """``value``, refused below 1."""
    if value is not None and value < 1:
        raise InvalidValueError(f"{name} must be at least 1, not {value}")
    return value
