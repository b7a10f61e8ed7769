"""The one place where tests look behind what the package offers: adapt it here where that changes."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from noisescape.risk import EmpiricalRisk
from noisescape.risk.capabilities import Capabilities
from noisescape.risk.gradients import fits_gradients
from noisescape.risk.hessian import Hessian
from noisescape.risk.model_loss import ModelLoss
from noisescape.risk.sample_gradients import remaining
from noisescape.risk.samples import StreamedSamples
from noisescape.risk.sharded_samples import Samples

DECISIONS = (
    "sample_bytes",
    "gradient_width",  # which tells the layers that are factored
    *(
        name
        for name, entry in vars(Capabilities).items()
        if isinstance(entry, functools.cached_property) and name != "ruled_layers"
    ),
)
"""What a risk finds out once, on first use."""


def decided(risk: EmpiricalRisk, name: str) -> Any:
    """One of them, or what follows from them without more."""
    return sample_bytes(risk) if name == "sample_bytes" else getattr(risk._capabilities, name)


def sample_bytes(risk: EmpiricalRisk) -> int:
    """What one sample's forward pass keeps for the backward pass."""
    return risk._chunking.sample_bytes


def decide(risk: EmpiricalRisk) -> None:
    """Take all decisions, so that later work is only the work asked for."""
    risk._capabilities.decide()
    sample_bytes(risk)


def chunk_size(risk: EmpiricalRisk, **options: int) -> int:
    """How many samples are evaluated together."""
    return risk._chunking.samples(**{"passes": 2, **options})


def holds_gradients(risk: EmpiricalRisk, theta: Tensor) -> bool:
    """Whether all per-sample gradients fit the memory budget."""
    return fits_gradients(risk, theta)


def keeps_graphs_for_blocks(risk: EmpiricalRisk) -> bool:
    """Whether blocks of Hessian products go through kept graphs of the gradient."""
    return risk._chunking.holds_graphs and risk._chunking.parameters_dominate


def samples(risk: EmpiricalRisk) -> Samples:
    """The data as the risk reads them."""
    return risk._samples


def held_data(risk: EmpiricalRisk) -> tuple[Any, Any]:
    """(inputs, targets) of a risk whose data are not streamed."""
    return samples(risk).inputs, samples(risk).targets


def is_streamed(risk: EmpiricalRisk) -> bool:
    """Whether the data are read anew on each pass, rather than held."""
    return isinstance(samples(risk), StreamedSamples)


def keeps_graph(hessian: Hessian) -> bool:
    """Whether a Hessian has kept the graph of its gradient from an earlier product."""
    return hessian._graphs is not None


def without_rule(risk: EmpiricalRisk) -> list[int]:
    """The parameters, by position, that no layer's rule gives the gradients of single samples for."""
    layers = risk._capabilities.ruled_layers
    assert layers is not None
    assert isinstance(risk._function, ModelLoss)
    return remaining(risk._function, layers)


def found_out(risk: EmpiricalRisk) -> set[str]:
    """The entries of the table of what a model allows that are known so far."""
    return {*vars(risk._capabilities)} & {*vars(Capabilities)}
