"""What a risk accepts as θ, as directions and as sizes; anything else is refused before work starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisescape.errors import FailedError, InvalidIndexError, InvalidTypeError, InvalidValueError, kind_of
from noisescape.linops.operator import check_operand
from noisescape.scalars import check_whole


def check_risk(risk: Any) -> None:
    """Refuse what is no risk, such as the model that one is made of."""
    from noisescape.risk.empirical_risk import EmpiricalRisk  # which reads this file

    if not isinstance(risk, EmpiricalRisk):
        raise InvalidTypeError(f"risk must be an EmpiricalRisk(model, loss, data), not {kind_of(risk)}")


def check_point(risk: Any, theta: Any) -> None:
    """Refuse what is no risk, or no θ of it, (D,) or (R, D)."""
    check_risk(risk)
    risk._check_theta(theta)


def check_hessian(hessian: Any, risk: Any) -> None:
    """Refuse what is no operator of the risk's size, given in place of its Hessian."""
    check_operand(hessian)
    if hessian.size != risk.dimension:
        raise InvalidValueError(f"hessian is of {hessian.size} parameters, the risk has {risk.dimension}")


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


def check_beside(name: str, tensor: Any, theta: Tensor) -> None:
    """Refuse what is no tensor of θ's dtype and device."""
    if not isinstance(tensor, Tensor):
        raise InvalidTypeError(f"{name} must be a torch.Tensor, not {kind_of(tensor)}")
    if (tensor.dtype, tensor.device) != (theta.dtype, theta.device):
        raise InvalidValueError(
            f"{name} are {tensor.dtype} on {tensor.device}, but θ is {theta.dtype} on {theta.device}; "
            "convert them: .to(theta)"
        )


def check_directions(theta: Tensor, directions: Tensor) -> None:
    """Refuse directions that do not fit θ: (D,) or (D, K) for a single one, (R, D) for replicas."""
    check_beside("directions", directions, theta)
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


def check_size(name: str, value: int | None) -> None:
    """Refuse anything but None and an int of at least 1."""
    if value is not None:
        check_whole(name, value)


def checked_device(device: Any) -> torch.device:
    """The device of this name, or itself; refused where there is none.

    Raises:
        TypeError: neither a name nor a device.
        ValueError: an unknown name, or a device that PyTorch does not see here.
    """
    if not isinstance(device, (str, torch.device)):
        raise InvalidTypeError(f"a device is a torch.device or its name, such as 'cuda:0', not {kind_of(device)}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InvalidValueError(f"unknown device '{device}'; use cpu, cuda or cuda:N") from None
    if found.type == "cpu":  # one, whatever its number
        return torch.device("cpu")
    if found.type == "meta":
        raise InvalidValueError("device 'meta' holds no numbers; use cpu, cuda or cuda:N")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise InvalidValueError(f"device '{device}' asked for, but PyTorch does not see it here") from None
    return found
