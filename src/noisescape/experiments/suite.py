"""Experiments that run as one: those of the paper, for ``reproduce all``, and the theory lab's, for ``lab all``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from noisescape.experiments.experiment import Experiment
from noisescape.experiments.lab.registry import LABS
from noisescape.experiments.registry import EXPERIMENTS


def paper_suite(preset: str, **changes: Any) -> dict[str, Any]:
    """The constants of every experiment of the paper at one preset, in the paper's order.

    Args:
        preset: of every experiment.
        changes: constants in place of the preset's, each for the experiments that have it; None changes nothing.

    Raises:
        ValueError: unknown preset, or a constant out of range.
    """
    return _suite([known for known in EXPERIMENTS.values() if known.of_paper], preset, changes)


def lab_suite(**changes: Any) -> dict[str, Any]:
    """The constants of every law's experiment, in the order of the lab; changes as for :func:`paper_suite`."""
    return _suite([*LABS.values()], "quick", changes)


def _suite(experiments: Sequence[Experiment], preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    suite = {}
    for known in experiments:
        own = {field.name for field in dataclasses.fields(known.config)} & changes.keys()
        suite[known.name] = known.configure(preset, **{key: changes[key] for key in own})
    return suite


def check_data(suite: Mapping[str, Any]) -> None:
    """Make the first repetition's problem of every experiment on images: what is missing is said at once.

    Raises:
        DataError: a data set is missing or broken.
    """
    for name, config in suite.items():
        if (problem := EXPERIMENTS[name].problem) is not None:
            problem(config, 0)
