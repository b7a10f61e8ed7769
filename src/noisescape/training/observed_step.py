"""What hooks saw of a step so far, and whether its figures can be made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from noisescape.training.gradient_norms import GradientNorms, norm
from noisescape.training.noise_scale import Weights

DISAGREE = -torch.inf
"""In place of a squared norm: what the device found, which the host learns at the next report."""


@dataclass(frozen=True)
class StepRecord:
    """One measured step as this rank saw it.

    Attributes:
        norms: (2 metrics, 2, groups): in each metric, Σ‖piece‖² and ‖P‖², in the units of the loss; NaN where the
            step cannot be used, and in the optimiser's metric where it has none; ``DISAGREE`` where the gradients
            are not what the backward passes brought. On the parameters' device.
        sizes: samples of each of this rank's pieces.
        shares: each piece's weight in the step's gradient.
        micro_steps: how many of these training made, a split step being one.
        fault: why it cannot be used.
    """

    norms: Tensor
    sizes: Sequence[int]
    shares: Sequence[float | Tensor]
    micro_steps: int
    fault: str | None

    @property
    def weights(self) -> Weights:
        """What is known of the pieces; waits for the device where a share is there."""
        return Weights.of(self.sizes, [float(share) for share in self.shares])


@dataclass
class Piece:
    """A forward pass of ``size`` samples, and the gradients that its backward pass brought so far.

    Attributes:
        size: samples.
        weight: of its gradient in the step's; None: as usual.
        norms: of its gradient.
        forwards: forward passes before its backward pass.
        done: whether its backward pass has ended.
        stray: whether it is a backward pass that no forward pass was seen for.
        asked: whether gradients of it were asked for that were not accumulated.
        seen: parameters whose gradient came.
    """

    size: int
    weight: float | Tensor | None
    norms: GradientNorms
    forwards: int = 1
    done: bool = False
    stray: bool = False
    asked: bool = False
    seen: set[int] = field(default_factory=set)


@dataclass
class Split:
    """What was seen of the halves of a step's one batch.

    Attributes:
        contrast: norms of the difference of the halves.
        of: the parameters that it is of.
        through: norms of all the gradient that comes through the output, where that is to be checked.
        sizes: of the halves, once they were told apart.
        backward: the backward pass in which they were.
        elsewhere: whether that is another than the one that brought the gradients.
    """

    contrast: GradientNorms
    of: set[int] = field(default_factory=set)
    through: list[Tensor] = field(default_factory=list)
    sizes: list[int] | None = None
    backward: int = -1
    elsewhere: bool = False

    def fault(self, piece: Piece) -> str | None:
        """Why the halves are not those of the piece's gradient."""
        if not piece.seen <= self.of:
            return (
                "part of the gradient does not come through the model's output, so its batch cannot be split: "
                "accumulate over two micro-steps or more"
            )
        if self.elsewhere:
            return (
                "gradients at the model's output were asked for by themselves too (for a penalty, say), so its "
                "batch cannot be split: accumulate over two micro-steps or more"
            )
        return None


@dataclass(frozen=True)
class GradientState:
    """A parameter's gradient at a moment, so that it can be told whether anyone wrote to it since."""

    parameter: Tensor
    gradient: Tensor | None
    version: int
    norm: Tensor | None = None

    @staticmethod
    def of(parameter: Tensor, norm: Tensor | None = None) -> GradientState:
        """As it is now."""
        gradient = parameter.grad
        return GradientState(parameter, gradient, 0 if gradient is None else _version(gradient), norm)

    @property
    def untouched(self) -> bool:
        """Whether it is the same tensor, unwritten; writes to ``.data`` leave no trace here."""
        return self.gradient is self.parameter.grad and (
            self.gradient is None or _version(self.gradient) == self.version
        )

    @property
    def norm_now(self) -> Tensor | None:
        """Its present norm."""
        return None if self.gradient is None else norm(self.gradient)


class ObservedStep:
    """What was seen of a step so far.

    Attributes:
        pieces: the last of them is the present one.
        split: of the present one.
        sums: norms of the accumulated gradients, when the last backward pass had ended.
        recomputing: whether the present forward pass is one that a checkpoint does again.
        depth: how many of the modules whose output can be split are being called.
        before: a parameter's gradient before the present backward pass.
        after: the same when the last one had ended.
        wrong: what would make the step unusable, each known on the device: gradients that were there before the
            first piece, that are not what hooks saw of it, or that were written to between two.
        fault: why it cannot be used, as far as the host knows.
    """

    def __init__(self, empty: GradientNorms) -> None:
        self.groups = empty.groups
        self.pieces: list[Piece] = []
        self.split = Split(empty)
        self.sums: GradientNorms | None = None
        self.recomputing = False
        self.depth = 0
        self.before: GradientState | None = None
        self.after: GradientState | None = None
        self.wrong: list[Tensor] = []
        self.fault: str | None = None

    @property
    def waits(self) -> bool:
        """Whether the last forward pass has had no backward pass yet."""
        return bool(self.pieces) and not self.pieces[-1].seen


def _version(gradient: Tensor) -> int:
    """How often it was written to."""
    return int(gradient._version)  # noqa: SLF001  torch has no public way
