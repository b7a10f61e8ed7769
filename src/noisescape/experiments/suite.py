"""The experiments of the paper as one suite: those that are part of ``reproduce all``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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
        if experiment.of_paper:
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
