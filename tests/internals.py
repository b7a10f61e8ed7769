"""The one place where tests look behind what the package offers: adapt it here where that changes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from noisescape.risk import EmpiricalRisk
from noisescape.risk.hessian import Hessian
from noisescape.risk.samples import Samples, StreamedSamples

DECISIONS = ("bytes_per_sample", "forward_mode", "pushes_gradients", "gradient_width")
"""What a risk finds out once, on first use."""


def decided(risk: EmpiricalRisk, name: str) -> Any:
    """One of them, or another that needs no argument: ``pushes_outputs``, ``second_derivative_error``."""
    return getattr(risk, name)


def decide(risk: EmpiricalRisk) -> None:
    """Take all decisions, so that later work is only the work asked for."""
    for name in DECISIONS:
        decided(risk, name)


def chunk_size(risk: EmpiricalRisk, **options: int) -> int:
    """How many samples are evaluated together."""
    return risk.chunk_size(**options)


def holds_gradients(risk: EmpiricalRisk, theta: Tensor) -> bool:
    """Whether all per-sample gradients fit the memory budget."""
    return risk.holds_gradients(theta)


def keeps_graphs_for_blocks(risk: EmpiricalRisk) -> bool:
    """Whether blocks of Hessian products go through kept graphs of the gradient."""
    return risk.bends_blocks()


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
    return hessian._graph is not None
