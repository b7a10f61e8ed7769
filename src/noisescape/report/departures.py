"""Where a run departs from the paper and from its published code, in constants and in methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from noisescape.experiments.experiment import Experiment
from noisescape.report.page import Section, Table
from noisescape.report.style import LABELS

OF_THE_CALL = ("preset", "seed", "device", "data_dir")
"""Constants that say which run it is and where, not what it does."""
CONSTANTS = {
    "batches": "batches that a covariance is estimated from",
    "batch_size": "batch size B",
    "clean": "training images with their own label",
    "control_replicas": "replicas in each control geometry",
    "corrupted": "training images with a random label",
    "curvature_refresh": "steps between two computations of eigenvectors of H",
    "decay_from": "epoch from which the learning rate falls",
    "dynamics": "compared dynamics",
    "every_step": "dynamics whose covariance is computed on every step",
    "exchanged": "trained on the test split, tested on the training split",
    "gd_arm_lr": "learning rate of gradient descent from the minimum",
    "gd_lr": "learning rate of gradient descent to the minimum",
    "gd_steps": "steps to the minimum",
    "image_size": "pixels a side",
    "init": "variance of the initial weights by",
    "init_bound": "initial weights and biases: bound of the uniform, × 1/√width",
    "init_std": "initial weights: standard deviation",
    "landmarks": "shares of the way to the minimum where Tr(HΣ) is measured",
    "level": "training loss at which all are compared",
    "lr": "learning rate",
    "optimisers": "optimisers",
    "pixel_low": "value of black",
    "quench_steps": "steps of gradient descent down to that loss, at most",
    "refresh": "steps between two computations of a covariance",
    "replacement": "batches drawn with replacement",
    "replicas": "replicas of each dynamics",
    "rescale": "leading noise scaled to TrΣ",
    "rho": "standard deviation of constant noise",
    "rtol": "relative standard error at the minimum",
    "seeds": "independent repetitions",
    "sharpness_at": "steps where sharpness is measured beside the last",
    "sharpness_delta": "scale δ of sharpness",
    "sharpness_draws": "draws of sharpness",
    "steps": "steps of every dynamics",
    "test": "test images",
    "train": "training images",
    "training": "rounding of float32 products in training",
    "width": "width of the network, of the published",
    "widths": "hidden units",
}
"""What constants are called for readers; another goes by its name."""
WITHOUT = {
    "gd_arm_lr": "that of the others",
    "batches": "none: exact",
    "init_bound": "none: normal",
    "level": "none: at the last step",
    "rho": "of trace TrΣ",
    "test": "all",
}
"""What a constant means that is None."""


def departures(experiment: Experiment, config: Mapping[str, Any]) -> Section:
    """The section that says where a run departs from the paper or its published code.

    Args:
        experiment: the run's, with the presets ``paper`` and ``as-published``.
        config: the run's constants, as they are in its ``run.json``. One that came later than the run stands at its
            default, which is what was done before it came.
    """
    paper, code = (asdict(experiment.presets[preset]) for preset in ("paper", "as-published"))
    code |= experiment.in_code
    rows = []
    for name, default in asdict(experiment.config()).items():
        if name not in OF_THE_CALL:
            here, *others = (shown(name, entry) for entry in (config.get(name, default), paper[name], code[name]))
            if {here} != set(others):
                rows.append([CONSTANTS.get(name, name), here, *others])
    for method in experiment.methods:
        here = method.at(config["preset"])
        if {here} != {method.paper, method.code}:
            rows.append([method.what, here, method.paper, method.code])
    return Section(
        "Where this run departs from the published code and the paper",
        "Every constant and method that is not alike in all three. A constant that the paper leaves open is ours "
        "in its column; so are the numbers of repetitions.",
        [Table(["what", "this run", "the paper", "the published code"], rows, "From the run's own configuration.")],
    )


def shown(name: str, value: Any) -> str:
    """A constant's value for readers.

    >>> shown("steps", 200_001), shown("test", None), shown("dynamics", ["gd", "sgd"])
    ('200,001', 'all', 'GD, SGD')
    >>> shown("sharpness_at", [1000, 2000, 3000, 4000, 5000])
    '5, from 1,000 to 5,000'
    """
    if value is None:
        return WITHOUT.get(name, "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return LABELS[value]
    entries = [shown(name, entry) for entry in value]
    if len(entries) > 3 and not isinstance(value[0], str):
        return f"{len(entries)}, from {entries[0]} to {entries[-1]}"
    return ", ".join(entries) or "none"
