"""The constants of every experiment are checked when they are made."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from noisescape.experiments.constants import CONTROLS, DYNAMICS
from noisescape.experiments.digits import DigitsConfig
from noisescape.experiments.one_hidden_layer import OneHiddenLayerConfig
from noisescape.experiments.svhn import SVHN
from noisescape.experiments.toy_2d import Toy2DConfig
from run_files import SMALL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preset": "published"},
            "unknown preset 'published'; did you mean as-published. known: quick, paper, as-published",
        ),
        ({"replicas": 0}, "replicas must be at least 1, not 0"),
        ({"control_replicas": -1}, "control_replicas must be at least 0"),
        ({"points": 1}, "points must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"update_trace": -1.0}, "update_trace must be at least 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_toy_constants_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy2DConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"gd_steps": 0}, "gd_steps must be at least 1"),
        ({"steps": -1}, "steps must be at least 1, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
        ({"gd_lr": math.nan}, "gd_lr must be positive, not nan"),
        ({"sharpness_delta": -1.0}, "sharpness_delta must be positive"),
        ({"dynamics": ("sgd", "gld-leding")}, "unknown dynamics 'gld-leding'; did you mean gld-leading"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"sharpness_draws": 1}, "sharpness_draws must be at least 2, not 1"),
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"refresh": 0}, "refresh must be at least 1, not 0"),
        ({"curvature_refresh": 0}, "curvature_refresh must be at least 1, not 0"),
        ({"every_step": ("gld-diagnal",)}, "unknown dynamics 'gld-diagnal'; did you mean gld-diagonal"),
        ({"rtol": 0.0}, "rtol must be positive, not 0"),
        ({"landmarks": (0.5, 1.5)}, r"landmarks are shares of gd_steps in \(0, 1\], not \(0.5, 1.5\)"),
    ],
)
def test_digits_constants_are_checked_before_any_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_the_controls_beside_the_comparison_have_to_be_asked_for() -> None:
    assert DigitsConfig().dynamics == tuple(name for name in DYNAMICS if name not in CONTROLS)
    assert set(CONTROLS) == {"gld-shuffled", "gld-shuffled-within-layers", "gd-gradient-penalty"}


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"adam_lr": 0.0}, {"gd_lr": -1.0}, {"init_std": math.nan}, {"init_bound": 0.0}]
)
def test_every_constant_of_one_hidden_layer_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        replace(OneHiddenLayerConfig(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "widths are even"),
        ({"widths": (32, 33)}, r"widths are even, half the units for each output sign; not \(32, 33\)"),
        ({"widths": (0,)}, "widths are even"),
        ({"optimisers": ("adam", "sgd")}, r"unknown optimiser \['sgd'\]; known: adam, gd"),
        ({"clip": 0.5}, r"clip must lie in \(0, 0.5\), not 0.5"),
        ({"clip": 0.0}, "clip must lie in"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"points": 1}, "points must be at least 2, not 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1"),
    ],
)
def test_one_hidden_layer_constants_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OneHiddenLayerConfig(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": 0}, "train must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"lr": 0.0}, "lr must be positive, not 0"),
        ({"sharpness_delta": math.nan}, "sharpness_delta must be positive, not nan"),
        ({"sharpness_draws": 1}, "sharpness_draws must be at least 2"),
        ({"dynamics": ("gd", "sdg")}, "unknown dynamics 'sdg'; did you mean sgd"),
        ({"init": "fan-inn"}, "unknown init 'fan-inn'; did you mean fan-in"),
        ({"sharpness_at": (10, -1)}, r"sharpness_at are steps, from 0 on, not \(10, -1\)"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_training_constants_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVHN.configure("paper", **changes)
