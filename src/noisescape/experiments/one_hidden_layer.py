"""One hidden layer: does Tr(HΣ) exceed its isotropic reference all along training?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from noisescape.errors import InvalidValueError
from noisescape.experiments.constants import require_at_least
from noisescape.experiments.experiment import SEEDS, Experiment, Method

Optimiser = Literal["adam", "gd"]


@dataclass(frozen=True)
class OneHiddenLayerConfig:
    """Constants of the run; the defaults are the published ones.

    Attributes:
        preset: its name.
        seeds: independent repetitions: data and initialisation.
        widths: hidden units.
        optimisers: "adam" as published, and plain gradient descent.
        points: N.
        clip: δ; the output is kept in [δ, 1 − δ].
        epochs: how many.
        steps_per_epoch: full-batch steps in each.
        decay_from: the epoch, counted from 1, from which the learning rate falls linearly, to reach 0 after the
            last. In this epoch it is still whole.
        adam_lr: initial learning rate of Adam.
        gd_lr: the same of gradient descent, times the width: λ₁ of H grows with the width.
        init_std: of the hidden weights, times 1/√width, so that outputs start at the scale of the labels; biases
            are such that the output is ½ at x = 0.
        init_bound: b, for hidden weights and biases from U(−b, b)/√width instead.
        batch_size: B of the noise.
        replacement: its sampling law.
        seed: of everything.
        device: where.
    """

    preset: str = "paper"
    seeds: int = 10
    widths: tuple[int, ...] = (32, 128, 512)
    optimisers: tuple[Optimiser, ...] = ("adam", "gd")
    points: int = 1000
    clip: float = 1e-3
    epochs: int = 31
    steps_per_epoch: int = 10
    decay_from: int = 21
    adam_lr: float = 1e-3
    gd_lr: float = 0.2
    init_std: float = 0.25
    init_bound: float | None = None
    batch_size: int = 10
    replacement: bool = True
    seed: int = 0
    device: str = "cpu"

    experiment: ClassVar[str] = "one-hidden-layer"

    def __post_init__(self) -> None:
        least = dict.fromkeys(("seeds", "epochs", "steps_per_epoch", "batch_size"), 1)
        require_at_least(self, **least, points=2, seed=0)
        for name in ("adam_lr", "gd_lr", "init_std", "init_bound"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidValueError(f"{name} must be positive and finite, not {value}")
        if not 1 <= self.decay_from <= self.epochs:
            raise InvalidValueError(f"decay_from must lie in 1..epochs = {self.epochs}, not {self.decay_from}")
        if not self.widths or any(width < 2 or width % 2 for width in self.widths):
            raise InvalidValueError(f"widths are even, half the units for each output sign; not {self.widths}")
        if unknown := set(self.optimisers) - {"adam", "gd"}:
            raise InvalidValueError(f"unknown optimiser {sorted(unknown)}; known: adam, gd")
        if not 0 < self.clip < 0.5:
            raise InvalidValueError(f"clip must lie in (0, 0.5), not {self.clip}")

    def rate(self, optimiser: Optimiser, width: int, epoch: int) -> float:
        """The learning rate during an epoch, counted from 0."""
        start = self.adam_lr if optimiser == "adam" else self.gd_lr / width
        remaining = (self.epochs - epoch) / (self.epochs - self.decay_from + 1)
        return start * min(1.0, remaining)


_PAPER = OneHiddenLayerConfig()

ONE_HIDDEN_LAYER = Experiment(
    config=OneHiddenLayerConfig,
    title="Tr(HΣ) while one-hidden-layer networks train",
    question="Does the noise of SGD lie where the loss curves, while a network trains?",
    help="Tr(HΣ) against its isotropic reference while one-hidden-layer networks train.",
    presets={
        "quick": replace(_PAPER, preset="quick", seeds=3),
        "paper": _PAPER,
        # U(±0.1) at this width; the code counts its epochs from 0, and epoch 21 is the last with the whole rate
        "as-published": replace(
            _PAPER,
            preset="as-published",
            widths=(100,),
            optimisers=("adam",),
            decay_from=22,
            init_bound=1.0,
            replacement=False,
        ),
    },
    options=(SEEDS,),
    runner="noisescape.experiments.protocols.one_hidden_layer:run_one_hidden_layer",
    table="noisescape.report.tables:one_hidden_layer_table",
    report="noisescape.report.one_hidden_layer:one_hidden_layer_report",
    figures=(("indicator", "Solid: Tr(HΣ). Dashed: its isotropic reference. Every line is a seed."),),
    methods=(
        Method(
            "Tr(HΣ)", "exact", "from the covariance of 100 independent random batches", "exact, from all samples"
        ),
    ),
    in_code={"seeds": 1},
)
