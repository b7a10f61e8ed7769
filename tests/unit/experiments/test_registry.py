"""Every experiment's description holds together, and its names are those of the rooms below."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

from noisescape import dynamics
from noisescape.cli.options import PRESETS, SUITE_PRESETS
from noisescape.experiments import constants
from noisescape.experiments.digits import DIGITS
from noisescape.experiments.experiment import Experiment
from noisescape.experiments.fashion_mnist import FASHION_MNIST
from noisescape.experiments.registry import EXPERIMENTS
from noisescape.experiments.toy_2d import TOY_2D

every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


@every_experiment
def test_what_a_description_names_is_there(experiment: Experiment) -> None:
    taken = {}
    for part in ("runner", "table", "report"):
        module, _, name = getattr(experiment, part).partition(":")
        taken[part] = [*inspect.signature(getattr(importlib.import_module(module), name)).parameters]
    problem = [] if experiment.problem is None else ["problem"]
    assert taken["runner"] == ["config", *problem, "out", "engine", "resume", "progress"]
    assert taken["table"] == ["summary"]
    assert taken["report"] == ["run"]


@every_experiment
def test_options_set_constants_of_their_type(experiment: Experiment) -> None:
    fields = {field.name for field in dataclasses.fields(experiment.config)}
    assert {option.constant for option in experiment.options} <= fields
    for option in experiment.options:
        value = getattr(experiment.presets["quick"], option.constant)
        assert value is None or isinstance(value, option.kind)
        assert option.help.endswith(".")


@every_experiment
def test_presets_are_constants_of_the_experiment(experiment: Experiment) -> None:
    assert EXPERIMENTS[experiment.name] is experiment
    assert {"quick"} <= experiment.presets.keys() <= PRESETS.keys()
    assert not experiment.of_paper or {*experiment.presets} >= {*SUITE_PRESETS}
    for name, preset in experiment.presets.items():
        assert type(preset) is experiment.config
        assert experiment.configure(name) == preset
        assert preset.preset == name
    assert experiment.configure() == experiment.presets["quick"]
    assert experiment.in_code.keys() <= {field.name for field in dataclasses.fields(experiment.config)}
    assert bool(experiment.methods) == experiment.of_paper


def test_changes_may_be_of_a_constant_that_is_called_preset() -> None:
    assert TOY_2D.configure("paper", preset="as-published").replicas == 4000
    assert TOY_2D.configure("paper", preset="as-published").preset == "as-published"


def test_the_paper_compares_what_it_lists() -> None:
    """A new dynamics is no part of it, or begun runs could not be resumed."""
    compared = (
        *("gd", "sgd", "gld-constant", "gld-dynamic", "gld-diagonal", "gld-leading", "gld-hessian"),
        *("gld-top-eigenvector", "gld-full"),
    )
    assert DIGITS.configure().dynamics == compared
    assert FASHION_MNIST.configure("paper").dynamics == (*compared, "gld-shuffled", "gd-gradient-penalty")


def test_dynamics_go_by_their_own_names() -> None:
    assert tuple(dynamics.DYNAMICS) == constants.DYNAMICS
    assert constants.CONTROLS == dynamics.CONTROLS
    assert set(constants.TAKES_CURVATURE) < set(dynamics.DYNAMICS)
    assert set(constants.NOISELESS) < set(dynamics.DYNAMICS)


@pytest.mark.parametrize("name", ["gld-leding", "sdg", "", "x"])
def test_an_unknown_dynamics_is_refused_in_the_words_of_the_registry(name: str) -> None:
    with pytest.raises(ValueError) as by_registry:  # noqa: PT011  (the whole message is compared)
        dynamics.dynamics_by_name(name)
    for experiment in (DIGITS, FASHION_MNIST):
        with pytest.raises(ValueError) as by_constants:  # noqa: PT011
            experiment.configure(dynamics=("gd", name))
        assert str(by_constants.value) == str(by_registry.value)
