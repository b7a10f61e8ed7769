"""Every experiment, a line each."""

from __future__ import annotations

from noisescape.experiments.cifar10 import CIFAR10
from noisescape.experiments.digits import DIGITS
from noisescape.experiments.experiment import Experiment
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.gd_sharpness import GD_SHARPNESS
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.matched_loss import MATCHED_LOSS
from noisescape.experiments.noise_knob import NOISE_KNOB
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER
from noisescape.experiments.quantities import QUANTITIES
from noisescape.experiments.svhn import SVHN
from noisescape.experiments.toy_2d import TOY_2D

EXPERIMENTS: dict[str, Experiment] = {
    known.name: known
    for known in (
        *(TOY_2D, ONE_HIDDEN_LAYER, FASHION_MNIST, SVHN, CIFAR10),
        *(DIGITS, MATCHED_LOSS, NOISE_KNOB, QUANTITIES, GD_SHARPNESS),
        *LABS.values(),
    )
}
"""By name, in the paper's order, then those beside it, then the theory lab's."""
