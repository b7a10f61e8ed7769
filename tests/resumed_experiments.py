"""Small experiments that are stopped and resumed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from noisescape.experiments.digits import DIGITS as DIGITS_EXPERIMENT
from noisescape.experiments.digits import DigitsConfig
from noisescape.experiments.gd_sharpness import GD_SHARPNESS, GDSharpnessConfig
from noisescape.experiments.matched_loss import MATCHED_LOSS, MatchedLossConfig
from noisescape.experiments.noise_knob import NOISE_KNOB, NoiseKnobConfig
from noisescape.experiments.one_hidden_layer import ONE_HIDDEN_LAYER, OneHiddenLayerConfig
from noisescape.experiments.protocols import (
    comparison,
    escape,
    gd_sharpness,
    matched_loss,
    noise_knob,
    one_hidden_layer,
    quantities,
    toy_2d,
)
from noisescape.experiments.quantities import QUANTITIES, QuantitiesConfig
from noisescape.experiments.toy_2d import TOY_2D, Toy2DConfig
from noisescape.runs.run import Run
from noisescape.simulation.loop import simulate
from noisescape.simulation.records import Trajectory
from resuming import Stop
from slowness import quick

Experiment = Callable[..., Run]


TOY = Toy2DConfig(replicas=3, control_replicas=2, points=10, steps=12, seed=3)


LAYER = OneHiddenLayerConfig(
    seeds=1, widths=(4, 6), points=30, epochs=3, steps_per_epoch=2, decay_from=2, gd_lr=0.05, seed=2
)


DIGITS = DigitsConfig(
    seeds=2,
    clean=40,
    corrupted=8,
    gd_steps=12,
    landmarks=(0.5, 1.0),
    steps=6,
    k=5,
    batch_size=5,
    refresh=4,
    curvature_refresh=4,
    sharpness_draws=3,
    rtol=0.5,
    rtol_along=0.5,
    dynamics=("gd", "gld-leading", "gld-constant"),
    seed=2,
)


KNOB = NoiseKnobConfig(
    seeds=1,
    clean=40,
    corrupted=8,
    steps=7,
    batch_size=8,
    small_batch_size=2,
    measure_every=3,
    sharpness_draws=3,
    dynamics=("as-if-small", "isotropic", "gradient-penalty"),
    seed=2,
)


SUMS = QuantitiesConfig(
    seeds=1,
    gd_steps=5,
    steps=3,
    batch_sizes=(2, 4),
    rates=(1.0,),
    draws=2,
    clean=20,
    corrupted=4,
    measure_every=2,
    landmarks=(0.5,),
    k=2,
    compared=2,
    rtol=0.5,
    max_products=20,
    sharpness_draws=2,
    seed=2,
)


MATCHED = MatchedLossConfig(
    seeds=1,
    noise_seeds=2,
    data="digits",
    clean=40,
    corrupted=8,
    gd_steps=30,
    settle_steps=4,
    steps=24,
    batch_size=5,
    left=0.01,
    quench_steps=20,
    curve_steps=0,
    sharpness_draws=3,
    dynamics=("gd", "sgd", "gld-full", "gld-dynamic"),
    seed=2,
)


SHARPNESS = GDSharpnessConfig(
    preset="quick",
    seeds=1,
    rates=(0.1, 0.5),
    steps=5,
    measure_every=2,
    data="digits",
    clean=20,
    widths=(3,),
    seed=2,
)


EXPERIMENTS: dict[str, tuple[Experiment, Any, int]] = {
    "toy-2d": (TOY_2D.run, TOY, 18),
    "one-hidden-layer": (ONE_HIDDEN_LAYER.run, LAYER, 4),
    "digits": (DIGITS_EXPERIMENT.run, DIGITS, 10),
    "noise-knob": (NOISE_KNOB.run, KNOB, 3),
    "matched-loss": (MATCHED_LOSS.run, MATCHED, 6),
    "quantities": (QUANTITIES.run, SUMS, 4),
    "gd-sharpness": (GD_SHARPNESS.run, SHARPNESS, 2),
}


QUICK = ("one-hidden-layer", "gd-sharpness")


every_experiment = pytest.mark.parametrize("experiment", quick(QUICK, EXPERIMENTS))


tolerant = pytest.mark.filterwarnings("ignore::noisescape.linops.ToleranceWarning")


SIMULATING = {
    "toy-2d": (toy_2d,),
    "digits": (escape, comparison),
    "noise-knob": (noise_knob,),
    "matched-loss": (matched_loss,),
    "quantities": (quantities,),
    "gd-sharpness": (gd_sharpness,),
}
"""The modules of an experiment that call `simulate`."""


VARYING = ("run.json", "timing.json", ".lock")


def perform(experiment: str, out: Path, *, resume: bool = False, jobs: int = 1, **changes: Any) -> Run:
    work, config, _ = EXPERIMENTS[experiment]
    config = dataclasses.replace(config, **changes)
    return work(config, out, jobs=jobs, resume=resume, progress=False)


def contents(path: Path, *, without: Sequence[str] = VARYING) -> dict[str, bytes]:
    """The bytes of every file, but of those that tell the time."""
    found = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if not file.is_dir()}
    return {name: file.read_bytes() for name, file in found.items() if name not in without}


def assert_equal_runs(found: Path, expected: dict[str, bytes], why: object = "") -> None:
    present = contents(found)
    assert present.keys() == expected.keys(), why
    assert [name for name in expected if present[name] != expected[name]] == [], why
    assert not (found / "tasks").exists(), why


def stopped_at_write(
    experiment: str, out: Path, number: int, named: bool, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False
) -> bool:
    """Whether there was a file of that number to stop at; 0 is the first."""
    count = itertools.count()
    replace = Path.replace

    def give_name(self: Path, target: Path) -> Path:
        stop = next(count) == number
        if stop and not named:
            raise Stop
        moved = replace(self, target)
        if stop:
            raise Stop
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", give_name)
        try:
            perform(experiment, out, resume=resume)
        except Stop:
            return True
    return False


def stop_within(patch: pytest.MonkeyPatch, experiment: str, task: int, step: int) -> None:
    """Let the experiment's task of that number stop after so many steps (epochs), all kept."""
    count = itertools.count()
    if experiment == "one-hidden-layer":
        measured = one_hidden_layer.measured

        def measure(*arguments: Any) -> dict[str, float]:
            if next(count) == task * LAYER.epochs + step:
                raise Stop
            return measured(*arguments)

        patch.setattr(one_hidden_layer, "measured", measure)
        return

    def run(*arguments: Any, **options: Any) -> Trajectory:
        def watch(done: int) -> None:
            if done == step:
                raise Stop

        own = {"checkpoint_seconds": 0, "on_step": watch} if next(count) == task else {}
        return simulate(*arguments, **options, **own)

    for module in SIMULATING[experiment]:
        patch.setattr(module, "simulate", run)
