"""Two pieces out of one: the halves of a batch, told apart at the model's output by one more backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from noisescape.training.nested import tensors

Deliver = Callable[[list[int]], None]

ROUNDING = 1e-2
"""How much two backward passes through the same graph in half precision may differ in the squared norm."""


class Halves:
    """Splits the gradient of a step that is one piece.

    The gradient is a sum of what the rows of the model's output contribute to it, P = Σ_n c_n. In the user's own
    backward pass, when the gradient of the output arrives, one more backward pass from there with random signs ±1,
    half of them each, gives d = Σ ±c_n: hooks on the parameters see it while ``at_work``. The two halves' squared
    norms add up to (‖P‖² + ‖d‖²)/2. The loss and the targets need not be known. The cost is one backward pass, and
    at its peak the memory of the activations that a backward pass would have freed by then. The first time a pass
    without signs comes before it, which shows whether all of P comes through the output.

    Args:
        seed: of the signs.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._output: GradientEdge | None = None
        self._handle: RemovableHandle | None = None
        self.at_work = False
        self.signed = True  # whether the pass at work is
        self.checked = False  # whether all of the gradient was seen to come through the output
        self.refusal: str | None = None

    def watch(
        self, model: nn.Module, output: Any, size: int, parameters: Sequence[Tensor], deliver: Deliver
    ) -> None:
        """Split the gradient that will come back to ``output``; ``deliver`` the sizes of the halves.

        Args:
            model: what gave the output.
            output: of ``size`` samples.
            size: two at least; nothing is done for fewer.
            parameters: whose gradient it is, each with one hook, the caller's.
            deliver: called when the hooks have seen d.
        """
        if self.refusal is not None or size < 2:
            return
        if self._output is not None:
            self.release()
            self.refusal = "several of its outputs went into one backward pass"
            return
        rows = [row for row in tensors(output) if row.requires_grad and row.ndim and row.shape[0] == size]
        if len(rows) != 1:
            self.refusal = f"its output has {len(rows)} tensors with a row for each of {size} samples, not one"
        elif _watched_by_others(model, parameters):
            self.refusal = "other backward hooks are on it, which would see the gradients of half batches"
        else:
            self._output = _unconverted(rows[0])
            # what is called must not hold the output, which would keep its graph alive for ever
            self._handle = self._output.node.register_prehook(
                lambda gradients: self._split(gradients, size, parameters, deliver)
            )

    def release(self) -> None:
        """Forget the output that is watched."""
        self._output = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _split(
        self, gradients: Sequence[Tensor | None], size: int, parameters: Sequence[Tensor], deliver: Deliver
    ) -> None:
        output = self._output
        if output is None or self.at_work or (gradient := gradients[output.output_nr]) is None:
            return
        self.release()
        minus = size // 2
        signs = torch.ones(size)
        signs[torch.randperm(size, generator=self._generator)[:minus]] = -1
        signs = signs.to(gradient).view(size, *(1,) * (gradient.ndim - 1))
        self.at_work = True
        try:
            for signed in (True,) if self.checked else (False, True):
                self.signed = signed
                back = gradient * signs if signed else gradient
                torch.autograd.grad([output], list(parameters), [back], retain_graph=True, allow_unused=True)
        except RuntimeError as error:  # compiled, or a reentrant checkpoint
            self.refusal = f"its backward pass can be run once only ({str(error).splitlines()[0]})"
            return
        finally:
            self.at_work = False
        deliver([size - minus, minus])

    def check(self, through: float, whole: float) -> None:
        """Compare what came through the output, without signs, to all of the gradient: squared norms."""
        if not 0 < whole < math.inf or not math.isfinite(through):
            return
        self.checked = True
        if abs(through - whole) > ROUNDING * whole:
            self.refusal = "part of the gradient does not come through the model's output"

    def state_dict(self) -> dict[str, Any]:
        """Where the signs are."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._generator.set_state(state["generator"])


def _unconverted(row: Tensor) -> GradientEdge:
    """Where the gradient of an output comes back, before any change of its dtype.

    What prepares a model for mixed precision converts its outputs, while a loss within the model has what was
    converted.
    """
    edge = torch.autograd.graph.get_gradient_edge(row)
    while edge.node.name() == "ToCopyBackward0":
        node, number = edge.node.next_functions[0]
        if node is None or node.name() == "torch::autograd::AccumulateGrad":
            break
        edge = GradientEdge(node, number)
    return edge


def _watched_by_others(model: nn.Module, parameters: Sequence[Tensor]) -> bool:
    """Whether anyone but this package, with one hook a parameter, looks at gradients as they pass."""
    held = [vars(module) for module in model.modules()]
    return any(len(parameter._backward_hooks or ()) > 1 for parameter in parameters) or any(  # noqa: SLF001
        module["_backward_hooks"] or module["_backward_pre_hooks"] for module in held
    )
