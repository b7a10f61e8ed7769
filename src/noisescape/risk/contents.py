"""What a risk is made of: the tensors that θ lies in, and a checksum of all else."""

from __future__ import annotations

import xxhash

from noisescape.risk.empirical_risk import EmpiricalRisk
from noisescape.risk.model_loss import ModelLoss


def layer_sizes(risk: EmpiricalRisk) -> tuple[int, ...]:
    """Coordinates of θ in each trainable parameter of the module, in their order; of a closed form (D,)."""
    if not isinstance(risk._function, ModelLoss):
        return (risk.dimension,)
    return tuple(risk._function.sizes)


def tensor_names(risk: EmpiricalRisk) -> list[str]:
    """The names of those parameters; of a closed form that of θ alone."""
    return [*risk._function.names] if isinstance(risk._function, ModelLoss) else ["θ"]


def fingerprint(risk: EmpiricalRisk) -> str:
    """A checksum of what a risk is made of besides θ: data, frozen tensors, names, shapes, kinds.

    Two risks of one fingerprint may still differ in code: compare a loss as well.
    """
    state = xxhash.xxh3_64(risk._samples.digest().encode())
    state.update(f"{risk.dimension} {risk.dtype} {risk.sample_count}".encode())
    state.update(risk._function.fingerprint().encode())
    return state.hexdigest()
