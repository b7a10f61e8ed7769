"""θ from a safetensors file of a model's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noisescape.errors import CorruptFileError, InvalidValueError, MissingPathError

if TYPE_CHECKING:
    from torch import Tensor

    from noisescape.risk import EmpiricalRisk

NAMED = 3
"""Names of a message."""


def parameters_from(path: Path, risk: EmpiricalRisk) -> Tensor:
    """The trainable parameters of the risk's model as the file has them, (D,).

    Raises:
        MissingPathError: there is no such file.
        CorruptFileError: it is no safetensors file.
        InvalidValueError: parameters that it lacks or has in another shape, or tensors that are none of them: what
            a model holds beside its trainable parameters must be loaded where the risk is made.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingPathError(f"there is no file {path}; give a safetensors file of the parameters")
    try:
        held = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFileError(
            f"{path} is no safetensors file ({reason}); write one with safetensors.torch.save_file(dict("
            "model.named_parameters()), path)"
        ) from error
    wanted = risk.state_dict(risk.parameters())
    lacking = [name for name in wanted if name not in held]
    beside = [name for name in held if name not in wanted]
    unlike = [name for name in wanted if name in held and held[name].shape != wanted[name].shape]
    for names, what in (
        (lacking, "lacks {} of the model"),
        (unlike, "has {} in another shape than the model"),
        (beside, "has {}, no trainable parameter of the model: load that where the risk is made, and leave it out"),
    ):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise InvalidValueError(f"{path} {what.format(', '.join(names[:NAMED]) + more)}")
    return torch.cat([held[name].to(tensor).flatten() for name, tensor in wanted.items()])
