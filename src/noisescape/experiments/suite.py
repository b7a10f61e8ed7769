"""The experiments of the paper as one suite: all that have its constants among their presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from noisescape.errors import InvalidValueError
from noisescape.experiments.registry import EXPERIMENTS


def paper_suite(preset: str, **changes: Any) -> dict[str, Any]:
    """The constants of every experiment of the paper at one preset, in the paper's order.

    Args:
        preset: of every experiment.
        changes: constants in place of the preset's, each for the experiments that have it; None changes nothing.

    Raises:
        ValueError: unknown preset, or a constant out of range.
    """
    suite = {}
    for name, experiment in EXPERIMENTS.items():
        if "paper" not in experiment.presets:
            continue
        if preset not in experiment.presets:
            raise InvalidValueError(f"unknown preset '{preset}'; known: {', '.join(experiment.presets)}")
        own = {field.name for field in dataclasses.fields(experiment.config)} & changes.keys()
        suite[name] = experiment.configure(preset, **{key: changes[key] for key in own})
    return suite


def check_data(suite: Mapping[str, Any]) -> None:
    """Make the first repetition's problem of every experiment on images: what is missing is said at once.

    Raises:
        DataError: a data set is missing or broken.
    """
    for name, config in suite.items():
        if (problem := EXPERIMENTS[name].problem) is not None:
            problem(config, 0)
